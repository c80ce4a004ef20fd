"""XMoE: many small experts chosen until a share of the probability is reached halve the computation without loss.

Paper: Enhancing Efficiency in Sparse Models with Sparser Selection.
Tried: regression in sixteen clusters of unequal frequency; 32 experts of width 8, as many as reach 30, 60 or 90 % of
the probability, against top-2 of eight experts of width 32 (equal parameters, the balance loss tuned), 1,500 steps;
hidden units computed a token. The threshold is chosen by the error plus half of the units as a share of top-2's.
Against it: more than half of the baseline's hidden units, or an error more than 5 % higher.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.experts._synthetic import BALANCED, TOP2, build, clusters, fit, squared_error, test
from mixwell.claims.grids import RATES, variants

STEPS = 1500
ROUTERS = variants({"method": "threshold"}, threshold=(0.3, 0.6, 0.9))


def measure(bench: Bench, seed: int, *, lr: float, width: int, **spec: Any) -> dict[str, float]:
    """Hidden units computed a token by experts of this width, the error, and what settings are chosen by."""
    draw = clusters(seed, zipf=1.0)
    layer = build(seed, spec, problem=draw, hidden_dim=width)
    fit(layer, draw, seed, steps=STEPS, lr=lr)
    batch, mixed = test(layer, draw, seed)
    served = mixed.routing.indices_TK >= 0
    experts = served.sum(1).float()
    mean = float(experts.mean())
    units = width * mean
    error = squared_error(mixed, batch)
    choice = error + units / 128
    return {"units": units, "error": error, "choice": choice}


CLAIM = Claim(
    "Threshold routing halves the computation at equal loss.", "hidden units computed a token",
    quantity="units", at_least=0.5, relative=True, provided=(no_worse("error", 0.05),), tuned_by="choice",
    sides={"method": Side(measure, {**TOP2, "num_experts": 32, "width": 8}, {"lr": RATES, "router": ROUTERS}),
           "baseline": Side(measure, {**TOP2, "width": 32}, BALANCED)})
