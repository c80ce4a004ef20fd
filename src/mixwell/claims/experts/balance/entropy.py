"""DS-MoE: trained densely with a mutual-information loss, half of the experts suffice at inference.

Paper: Dense Training, Sparse Inference: Rethinking Training of Mixture-of-Experts Language Models; on the method
balance.entropy (the name entropy is an analysis's too).
Tried: regression in sixteen clusters of unequal frequency; all eight experts trained on every token for 1,500 steps,
the loss at the coefficient of 0.01 to 1 with the least error of half of the experts, against none; rise of the error
when four experts are kept. Against it: a rise that is no smaller, or 2 % or more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.experts._synthetic import FINE, Clusters, build, error, fit
from mixwell.claims.grids import RATES, variants

STEPS = 1500


def measure(bench: Bench, seed: int, *, lr: float, balance: Mapping[str, Any]) -> dict[str, float]:
    """Rise of the error in per cent when half of the experts are kept, and both errors."""
    draw = Clusters(seed, zipf=1.0)
    every = {"method": "top_k", "k": 8}
    layer = build(seed, {"router": every, "balance": balance}, problem=draw)
    fit(layer, draw, seed, lr=lr, steps=STEPS)
    full = error(layer, draw, seed)
    router = layer.router
    router.config = replace(router.config, k=4)
    half = error(layer, draw, seed)
    rise = half / full - 1
    return {"rise": 100 * rise, "error": full, "half": half}


WITH = {"lr": RATES, "balance": variants({}, entropy=(0.01, 0.1, 1.0))}

CLAIM = Claim(
    "With a mutual-information loss, half of densely trained experts suffice.",
    "rise of the error when half of the experts are kept, per cent", quantity="rise", tuned_by="half",
    provided=(Comparison(quantity="rise", baseline=2.0),),
    sides={"method": Side(measure, {}, WITH), "baseline": Side(measure, {"balance": {}}, FINE)})
