"""HMoE: experts of unequal width with a penalty by size reach a lower loss with fewer activated parameters.

Paper: HMoE: Heterogeneous Mixture of Experts for Language Modeling.
Tried: regression in sixteen clusters of unequal frequency, top-2 of eight experts of mean width 32, widths 1 to 2.5 in
arithmetic steps and the penalty at 0.01, 0.1 or 1, against equal widths with the Switch loss; hidden units computed a
token. The coefficient is chosen by the error. Against it: no fewer hidden units, or an error more than 5 % higher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.experts._synthetic import BALANCED, TOP2, Clusters, build, fit, squared_error, test
from mixwell.claims.grids import RATES, variants


def units(layer: Any, mixed: Any) -> float:
    """Hidden units computed a token."""
    widths = torch.tensor(layer.hidden_dims)
    computed = mixed.routing.load_E() @ widths
    return float(computed / len(mixed.routing.indices_TK))


def measure(bench: Bench, seed: int, *, lr: float, balance: Mapping[str, Any], ratio: float) -> dict[str, float]:
    """Hidden units a token, and the error, of experts whose widths grow by `ratio`."""
    draw = Clusters(seed, zipf=1.0)
    spec = {**TOP2, "balance": balance}
    layer = build(seed, spec, method="heterogeneous", ratio=ratio, problem=draw)
    fit(layer, draw, seed, lr=lr)
    batch, mixed = test(layer, draw, seed)
    computed = units(layer, mixed)
    error = squared_error(mixed, batch)
    return {"units": computed, "error": error}


PENALTY = {"lr": RATES, "balance": variants({}, parameter_penalty=(0.01, 0.1, 1.0))}

CLAIM = Claim(
    "Unequal experts with a size penalty compute less at no higher loss.", "hidden units computed a token",
    quantity="units", provided=(no_worse("error", 0.05),), tuned_by="error",
    sides={"method": Side(measure, {"ratio": 2.5}, PENALTY), "baseline": Side(measure, {"ratio": 1.0}, BALANCED)})
