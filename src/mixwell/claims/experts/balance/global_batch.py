"""Balance over the global batch: asked of the corpus and not of each micro-batch, it lets experts specialise.

Paper: Demons in the Detail: On Implementing Load Balancing Loss for Training Specialized Mixture-of-Expert Models.
Tried: regression in sixteen clusters from four domains, micro-batches of 128 tokens of one domain, four a step, top-2
of eight experts, balance loss over the step against over the micro-batch, each at the best of three coefficients for
its error; mutual information of domain and expert. Against it: an information that is no higher, or an error more than
2 % higher.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mixwell.claims._methods import call
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.experts._synthetic import Batch, Clusters, build, squared_error, test
from mixwell.claims.grids import RATES
from mixwell.core import registry
from mixwell.core.rng import generator
from mixwell.core.routing import Context

DOMAINS, STEPS = 4, 250


class Domain(Clusters):
    """The four clusters of one domain out of sixteen."""

    def __init__(self, seed: int, domain: int) -> None:
        super().__init__(seed)
        own = torch.arange(16) // 4 == domain
        self.shares_C = own.float()


def measure(bench: Bench, seed: int, *, over_step: bool, lr: float, coefficient: float) -> dict[str, float]:
    """Information of domain and expert in nats, and the error, with the load counted over the step or the micro-batch.
    """
    layer = trained(seed, over_step, lr, coefficient)
    batch, mixed = test(layer, Clusters(seed), seed)
    return {"information": information(mixed.routing, batch), "error": squared_error(mixed, batch)}


def trained(seed: int, over_step: bool, lr: float, coefficient: float) -> Any:
    """A layer that has seen a micro-batch of every domain at each step."""
    rule = registry.find("experts.balance.global_batch")
    layer = build(seed, {"router": {"method": "top_k", "k": 2}, "balance": {}}, problem=Clusters(seed))
    buffer = rule.module().Buffer() if over_step else None
    optimizer = torch.optim.Adam(layer.parameters(), lr=lr)
    domains = [Domain(seed, d) for d in range(DOMAINS)]
    draws = generator(seed, "fit")
    layer.train()
    for step in range(STEPS):
        optimizer.zero_grad()
        context = Context(step=step)
        for domain in domains:
            batch = domain(128, draws)
            mixed = layer(batch.x_TD, context)
            balance = rule.load()(mixed.routing, rule.module().Config(), context, buffer)
            error = nn.functional.mse_loss(mixed.y_TD, batch.y_TD)
            loss = error + coefficient * balance
            (loss / DOMAINS).backward()
        optimizer.step()
    return layer.eval()


def information(routing: object, batch: Batch) -> float:
    """Mutual information of domain and expert, nats."""
    domains = Context(labels_T=batch.labels_T // 4)
    found = call("experts.analysis.specialisation", routing, context=domains)
    return found["information_nats"]


GRID = {"lr": RATES, "coefficient": (0.03, 0.1, 0.3)}

CLAIM = Claim(
    "Balance over the global batch lets experts specialise by domain at no higher loss.",
    "mutual information of domain and expert, nats", quantity="information", lower_is_better=False, tuned_by="error",
    provided=(no_worse("error", 0.02),),
    sides={"method": Side(measure, {"over_step": True}, GRID), "baseline": Side(measure, {"over_step": False}, GRID)})
