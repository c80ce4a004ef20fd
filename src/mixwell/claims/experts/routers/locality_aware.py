"""LocMoE: a locality loss keeps tokens on their own node at no loss of accuracy.

Paper: LocMoE: A Low-overhead MoE for Large Language Model Training.
Tried: four nodes of four experts in one process, each node seeing four of sixteen clusters more often (7 in 10 of its
tokens); share of tokens sent to another node, locality loss at 0.1 against none, both with the Switch loss.
Against it: a share that is no lower, or an error more than 5 % higher. Time on a network is not tried.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.claims._judging import at_no_more_error
from mixwell.claims._series import series
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import Batch, Clusters, build, fit, squared_error, test
from mixwell.core.evidence import Evidence, weigh

NODES, EXPERTS = 4, 16


class Sharded(Clusters):
    """Tokens in order of their nodes, each node with a share of 0.7 of its own four clusters."""

    def __call__(self, count: int, draws: torch.Generator) -> Batch:
        """`count` tokens, the same number on every node."""
        parts = []
        home = torch.arange(EXPERTS) // NODES
        for node in range(NODES):
            self.shares_C = torch.where(home == node, 0.7 / 4, 0.3 / 12)
            parts.append(super().__call__(count // NODES, draws))
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


def measure(seed: int, locality: float) -> tuple[float, float]:
    """(share of tokens that leave their node, error)."""
    draw = Sharded(seed)
    router = {"method": "locality_aware", "gate": "linear", "nodes": NODES, "locality": locality}
    spec = {"router": router, "balance": {"switch": 0.01}}
    layer = build(seed, spec, num_experts=EXPERTS)
    fit(layer, draw, seed)
    batch, mixed = test(layer, draw, seed)
    first = mixed.routing.indices_TK[:, 0]
    return leaving(first), squared_error(mixed, batch)


def claim(bench: Bench) -> Evidence:
    """Share of tokens that leave their node with and without the loss."""
    method, ours = series(bench, measure, 0.1)
    baseline, theirs = series(bench, measure, 0.0)
    evidence = weigh("A locality loss keeps tokens on their node at equal loss.",
                     "share of tokens sent to another node", method, baseline)
    return at_no_more_error(evidence, ours, theirs, margin=0.05)
