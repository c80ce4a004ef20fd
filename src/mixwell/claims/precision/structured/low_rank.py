"""Low-rank feed-forwards: their loss falls more steeply with training FLOPs than that of dense ones.

Paper: Investigating Low-Rank Training in Transformer Language Models: Efficiency and Scaling Analysis.
Tried: the next byte of the standard library's docstrings from the eight before it, two blocks of hidden width 4 D at
widths D of 24, 48 and 96 with 50, 100 and 200 steps; factors of rank D / 2 against dense blocks; the slope of log bits
over log FLOPs by least squares, learning rates of both tuned alike by the bits at the largest width.
Against it: a slope that is no steeper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mixwell.claims._bytes import RATES, bits, learnt
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side

SIZES = {24: 50, 48: 100, 96: 200}  # width -> steps
Mixer = Callable[[int], Mapping[str, Any]]


def dense(dim: int) -> dict[str, Any]:
    """A dense block."""
    return {"method": "swiglu", "hidden_dim": 4 * dim, "gated": False, "activation": "gelu"}


def low_rank(dim: int) -> dict[str, Any]:
    """The same in factors of half the width's rank."""
    structure = {"method": "low_rank", "rank": dim // 2}
    return {**dense(dim), "method": "structured", "structure": structure}


def measure(bench: Bench, seed: int, *, mixer: Mixer, lr: float) -> dict[str, float]:
    """The slope, and bits at the largest width."""
    flops, losses = [], []
    for dim, steps in SIZES.items():
        spec = mixer(dim)
        model = learnt(seed, spec, dim=dim, steps=steps, lr=lr)
        spent = model.flops() * steps
        flops.append(math.log(spent))
        losses.append(bits(model))
    logs = np.log(losses)
    slope, _ = np.polyfit(flops, logs, 1)
    return {"slope": float(slope), "bits": losses[-1]}


CLAIM = Claim(
    "The loss of low-rank feed-forwards falls more steeply with FLOPs.", "slope of log bits per byte over log FLOPs",
    quantity="slope", tuned_by="bits",
    sides={"method": Side(measure, {"mixer": low_rank}, {"lr": RATES}),
           "baseline": Side(measure, {"mixer": dense}, {"lr": RATES})})
