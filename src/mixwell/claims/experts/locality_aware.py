"""LocMoE: a locality loss keeps tokens on their own node at no loss of accuracy.

Paper: LocMoE: A Low-overhead MoE for Large Language Model Training.
Tried: four nodes of four experts in one process, each node seeing four of sixteen clusters more often (7 in 10 of its
tokens); share of tokens sent to another node, locality loss at 0.1 against none, both with the Switch loss.
Against it: a share that is no lower, or an error more than 5 % higher. Time on a network is not tried.
"""

from __future__ import annotations

import torch
from torch import nn

from mixwell.claims._judging import no_worse, provided
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import Batch, Clusters, build, fit, test
from mixwell.core.evidence import Evidence, weigh

NODES, EXPERTS = 4, 16


class Sharded(Clusters):
    """Tokens in order of their nodes, each node with a share of 0.7 of its own four clusters."""

    def __call__(self, count: int, draws: torch.Generator) -> Batch:
        """`count` tokens, the same number on every node."""
        parts = []
        for node in range(NODES):
            self.shares_C = torch.where(torch.arange(EXPERTS) // NODES == node, 0.7 / 4, 0.3 / 12)
            parts.append(super().__call__(count // NODES, draws))
        return Batch(*(torch.cat([getattr(p, name) for p in parts]) for name in ("x_TD", "y_TD", "labels_T")))


def measure(seed: int, locality: float) -> tuple[float, float]:
    """(share of tokens that leave their node, error)."""
    draw = Sharded(seed)
    router = {"method": "locality_aware", "gate": "linear", "nodes": NODES, "locality": locality}
    layer = fit(build(seed, {"router": router, "balance": {"switch": 0.01}}, num_experts=EXPERTS), draw, seed)
    batch, mixed = test(layer, draw, seed)
    chosen = mixed.routing.indices_TK[:, 0] * NODES // EXPERTS
    home = torch.arange(len(chosen)) * NODES // len(chosen)
    return float((chosen != home).float().mean()), float(nn.functional.mse_loss(mixed.y_TD, batch.y_TD))


def claim(bench: Bench) -> Evidence:
    """Share of tokens that leave their node with and without the loss."""
    method, baseline = ([measure(seed, locality) for seed in bench.seeds] for locality in (0.1, 0.0))
    evidence = weigh("A locality loss keeps tokens on their node at equal loss.",
                     "share of tokens sent to another node", [m[0] for m in method], [b[0] for b in baseline])
    ours, theirs = [m[1] for m in method], [b[1] for b in baseline]
    return provided(evidence, no_worse(ours, theirs, 0.05), "Its error is more than 5 % higher.",
                    method_error=ours, baseline_error=theirs)
