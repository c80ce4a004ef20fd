"""Sparse all-MLP: experts for positions and channels beat a plain MLP-Mixer block at equal computation.

Paper: Cross-token Modeling with Conditional Computation.
Tried: scikit-learn's digits as sixteen patches of two by two, two blocks of width 32 without attention; four experts of
width 32 in both stages, top-1, against one expert in each, which is MLP-Mixer; accuracy on 597 test images. Against it:
an accuracy that is no higher.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._digits import PATCHES, read, two_mixers
from mixwell.claims.experts._synthetic import BALANCED, FINE
from mixwell.core.rng import generator

SIZES = {"seq_len": PATCHES, "token_hidden_dim": 32, "channel_hidden_dim": 32}


def measure(bench: Bench, seed: int, *, experts: int, lr: float, **options: Any) -> float:
    """Accuracy with this many experts in each stage."""
    draws = generator(seed, "reader")
    number = {"token_experts": experts, "channel_experts": experts}
    mixers = two_mixers("experts.layers.all_mlp", draws, **number, **SIZES, **options)
    return read(seed, mixers, draws, attention=False, lr=lr)


CLAIM = Claim(
    "Experts for positions and channels beat MLP-Mixer.", "accuracy on test images", lower_is_better=False,
    sides={"method": Side(measure, {"experts": 4}, BALANCED), "baseline": Side(measure, {"experts": 1}, FINE)})
