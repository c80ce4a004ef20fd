"""MPOE: experts that share their central tensors match independent experts with a fraction of the parameters.

Paper: Parameter-Efficient Mixture-of-Experts Architecture for Pre-trained Language Models.
Tried: the bench's language model; eight experts of width 64 in five tensors with bonds of at most 16 against
independent experts. Against it: bits per byte more than 1 % higher, or more than a fifth of a mixture's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.language import BALANCED, from_trunk

SHARED = {"method": "experts.layers.tensor_train", "tensors": 5, "rank": 16}


def measure(bench: Bench, seed: int, *, mixer: Mapping[str, Any], **options: Any) -> dict[str, float]:
    """Bits per byte, and parameters of one layer's mixture."""
    trained = from_trunk(bench, seed, mixer=mixer, **options)
    first = trained.model.layers[0]
    own = first.channel_mixer.parameters()
    size = sum(parameter.numel() for parameter in own)
    return {"bits": trained.bits_per_byte, "parameters": float(size)}


CLAIM = Claim(
    "Shared central tensors are within 1 % of independent experts.", BITS, quantity="bits", at_least=-0.01,
    relative=True, provided=(Comparison(quantity="parameters", at_least=0.8, relative=True),),
    sides={"method": Side(measure, {"mixer": SHARED}, BALANCED), "baseline": Side(measure, {"mixer": {}}, BALANCED)})
