"""LocMoE: a locality loss keeps tokens on their own node at no loss of accuracy.

Paper: LocMoE: A Low-overhead MoE for Large Language Model Training.
Tried: four nodes of four experts in one process, each node seeing four of sixteen clusters more often (7 in 10 of its
tokens); share of tokens sent to another node, the locality loss at 0.03, 0.1 or 0.3 against none, both with the
Switch loss. Against it: a share that is no lower, or an error more than 5 % higher. Time on a network is not tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.experts._synthetic import FINE, Batch, Clusters, build, fit, squared_error, test
from mixwell.claims.grids import RATES, variants

NODES, EXPERTS = 4, 16


class Sharded(Clusters):
    """Tokens in order of their nodes, each node with a share of 0.7 of its own four clusters."""

    def __call__(self, count: int, draws: torch.Generator) -> Batch:
        """`count` tokens, the same number on every node."""
        parts = []
        home = torch.arange(EXPERTS) // NODES
        for node in range(NODES):
            self.shares_C = torch.where(home == node, 0.7 / 4, 0.3 / 12)
            part = super().__call__(count // NODES, draws)
            parts.append(part)
        x_TD = torch.cat([part.x_TD for part in parts])
        y_TD = torch.cat([part.y_TD for part in parts])
        labels_T = torch.cat([part.labels_T for part in parts])
        return Batch(x_TD, y_TD, labels_T)


def leaving(indices_T: Tensor) -> float:
    """Share of tokens, in order of their nodes, whose expert is on another node."""
    count = len(indices_T)
    chosen = indices_T * NODES // EXPERTS
    home = torch.arange(count) * NODES // count
    away = chosen != home
    return float(away.float().mean())


def measure(bench: Bench, seed: int, *, router: Mapping[str, Any], lr: float) -> dict[str, float]:
    """Share of tokens that leave their node, and the error."""
    draw = Sharded(seed)
    spec = {"router": router, "balance": {"switch": 0.01}}
    layer = build(seed, spec, problem=draw, num_experts=EXPERTS)
    fit(layer, draw, seed, lr=lr)
    batch, mixed = test(layer, draw, seed)
    first = mixed.routing.indices_TK[:, 0]
    away = leaving(first)
    error = squared_error(mixed, batch)
    return {"leaving": away, "error": error}


LINEAR = {"method": "locality_aware", "gate": "linear", "nodes": NODES}
ROUTERS = variants(LINEAR, locality=(0.03, 0.1, 0.3))

CLAIM = Claim(
    "A locality loss keeps tokens on their node at equal loss.", "share of tokens sent to another node",
    quantity="leaving", provided=(no_worse("error", 0.05),), tuned_by="error",
    sides={"method": Side(measure, {}, {"lr": RATES, "router": ROUTERS}),
           "baseline": Side(measure, {"router": {**LINEAR, "locality": 0.0}}, FINE)})
