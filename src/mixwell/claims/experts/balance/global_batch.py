"""Balance over the global batch: asked of the corpus and not of each micro-batch, it lets experts specialise.

Paper: Demons in the Detail: On Implementing Load Balancing Loss for Training Specialized Mixture-of-Expert Models.
Tried: regression in sixteen clusters from four domains, micro-batches of 128 tokens of one domain, four a step, top-2
of eight experts, balance loss at 0.1 over the step against over the micro-batch; mutual information of domain and
expert. Against it: an information that is no higher, or an error that is higher.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mixwell.claims._judging import at_no_more_error
from mixwell.claims._methods import call
from mixwell.claims._series import series
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import Batch, Clusters, build, squared_error, test
from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.core.routing import Context

DOMAINS, STEPS, COEFFICIENT = 4, 250, 0.1


class Domain(Clusters):
    """The four clusters of one domain out of sixteen."""

    def __init__(self, seed: int, domain: int) -> None:
        super().__init__(seed)
        own = torch.arange(16) // 4 == domain
        self.shares_C = own.float()


def measure(seed: int, over_step: bool) -> tuple[float, float]:
    """(information of domain and expert in nats, error) with the load counted over the step or the micro-batch."""
    layer = trained(seed, over_step)
    batch, mixed = test(layer, Clusters(seed), seed)
    return information(mixed.routing, batch), squared_error(mixed, batch)


def trained(seed: int, over_step: bool) -> Any:
    """A layer that has seen a micro-batch of every domain at each step."""
    rule = registry.find("experts.balance.global_batch")
    layer = build(seed, {"router": {"method": "top_k", "k": 2}, "balance": {}})
    buffer = rule.module().Buffer() if over_step else None
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-3)
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
            loss = nn.functional.mse_loss(mixed.y_TD, batch.y_TD) + COEFFICIENT * balance
            (loss / DOMAINS).backward()
        optimizer.step()
    return layer.eval()


def information(routing: object, batch: Batch) -> float:
    """Mutual information of domain and expert, nats."""
    domains = Context(labels_T=batch.labels_T // 4)
    found = call("experts.analysis.specialisation", routing, context=domains)
    return found["information_nats"]


def claim(bench: Bench) -> Evidence:
    """Specialisation by domain under the two ways to count the load."""
    method, ours = series(bench, measure, True)
    baseline, theirs = series(bench, measure, False)
    evidence = weigh("Balance over the global batch lets experts specialise by domain at lower loss.",
                     "mutual information of domain and expert, nats", method, baseline, lower_is_better=False)
    return at_no_more_error(evidence, ours, theirs)
