"""Soft mixture: experts on slots that mix all patches beat a dense block and sparse routing of equal computation.

Paper: From Sparse to Soft Mixtures of Experts.
Tried: scikit-learn's digits as sixteen patches of two by two, two blocks of attention and mixer of width 32; sixteen
experts of width 32 with a slot each, the logits' scale started at 1, 4 or 16, against a dense block of width 48, which
takes the same FLOPs, and top-1 of sixteen experts of width 43; accuracy on 597 test images. Against it: an accuracy
that is no higher than the dense block's, or half a point lower than top-1's.
"""

from __future__ import annotations

from typing import Any

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.experts._digits import PATCHES, read, two_mixers
from mixwell.claims.experts._synthetic import BALANCED, FINE
from mixwell.claims.grids import RATES
from mixwell.core.rng import generator

SOFT = {"num_experts": 16, "hidden_dim": 32, "max_positions": PATCHES}
TOP1 = {"method": "moe", "num_experts": 16, "hidden_dim": 43, "router": {"method": "top_k", "k": 1}}
DENSE = {"method": "swiglu", "hidden_dim": 48}


def routed(bench: Bench, seed: int, *, method: str, lr: float, **options: Any) -> float:
    """Accuracy of the network with this mixer."""
    draws = generator(seed, "reader")
    mixers = two_mixers(f"experts.layers.{method}", draws, **options)
    return read(seed, mixers, draws, steps=300, lr=lr)


def soft(bench: Bench, seed: int, *, lr: float, scale: float) -> float:
    """Accuracy of the network with soft mixtures whose logits lie between minus and plus `scale` at the start."""
    draws = generator(seed, "reader")
    mixers = two_mixers("experts.layers.soft_moe", draws, **SOFT)
    for mixer in mixers:
        torch.nn.init.constant_(mixer.sharpness, scale)
    return read(seed, mixers, draws, steps=300, lr=lr)


CLAIM = Claim(
    "A soft mixture beats a dense block of equal computation.", "accuracy on test images", lower_is_better=False,
    provided=(no_worse(baseline="top-1", lower_is_better=False, margin=0.005, relative=False),),
    sides={"method": Side(soft, {}, {"lr": RATES, "scale": (1.0, 4.0, 16.0)}), "baseline": Side(routed, DENSE, FINE),
           "top-1": Side(routed, TOP1, BALANCED)})
