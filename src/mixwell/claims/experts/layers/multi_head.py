"""MH-MoE: at equal parameters and FLOPs, routing sub-tokens beats routing tokens and uses more experts for each token.

Paper: MH-MoE:Multi-Head Mixture-of-Experts.
Tried: the bench's language model, two sub-tokens a token in the sizes of `parity_k` 2, against the plain mixture
(top-2 of eight experts of width 64) that it equals within 2 % in parameters and FLOPs. Against it: bits per byte that
are no lower, or no more distinct experts for a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.language import BALANCED, Seen, from_trunk, mean_over, probe

HEADS = {"method": "experts.layers.multi_head", "parity_k": 2}


def experts_of_a_token(seen: Seen) -> float:
    """Mean number of different experts that work on a token."""
    weights_TE = seen.mixed.routing.dense_TE()
    number_T = (weights_TE > 0).sum(1)
    return float(number_T.float().mean())


def measure(bench: Bench, seed: int, *, mixer: Mapping[str, Any], **options: Any) -> dict[str, float]:
    """Bits per byte, and experts of a held-out token, mean over layers."""
    trained = from_trunk(bench, seed, mixer=mixer, **options)
    experts = mean_over(probe(bench, trained.model), experts_of_a_token)
    return {"bits": trained.bits_per_byte, "experts": experts}


CLAIM = Claim(
    "Routing sub-tokens beats routing tokens at equal cost.", BITS, quantity="bits",
    provided=(Comparison(quantity="experts", lower_is_better=False),),
    sides={"method": Side(measure, {"mixer": HEADS}, BALANCED), "baseline": Side(measure, {"mixer": {}}, BALANCED)})
