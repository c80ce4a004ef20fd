"""X-MoE: routing by cosine on a low-dimensional sphere lessens the collapse of representations that top-k brings.

Paper: On the Representation Collapse of Sparse Mixture of Experts.
Tried: the bench's language model with one expert a token; the scatter of hidden states within experts over the scatter
between them, cosine router against a linear one with the same balance loss. Against it: a ratio that is no higher, or
more than one per cent more bits per byte. (The claim on experts.analysis.collapse asks whether a linear router
collapses at all; where it does not, this one compares ratios that are high.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.language import BALANCED, SWITCH, from_trunk, log_scatter_ratio

MIXERS = {"method": {"router": {"method": "cosine", "k": 1}}, "baseline": SWITCH}


def measure(bench: Bench, seed: int, *, mixer: Mapping[str, Any], lr: float,
            balance: Mapping[str, Any]) -> dict[str, float]:
    """Scatter ratio and bits per byte of a trained model."""
    trained = from_trunk(bench, seed, mixer=mixer, lr=lr, balance=balance)
    return {"scatter": log_scatter_ratio(bench, trained.model), "bits": trained.bits_per_byte}


CLAIM = Claim(
    "Cosine routing lessens representation collapse.",
    "log of within-expert over between-expert scatter of hidden states, mean over layers", quantity="scatter",
    lower_is_better=False, provided=(no_worse("bits", 0.01),), tuned_by="bits",
    sides={name: Side(measure, {"mixer": mixer}, BALANCED) for name, mixer in MIXERS.items()})
