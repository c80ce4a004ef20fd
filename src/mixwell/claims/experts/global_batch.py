"""Balance over the global batch: asked of the corpus and not of each micro-batch, it lets experts specialise.

Paper: Demons in the Detail: On Implementing Load Balancing Loss for Training Specialized Mixture-of-Expert Models.
Tried: regression in sixteen clusters from four domains, micro-batches of 128 tokens of one domain, four a step, top-2
of eight experts, balance loss at 0.1 over the step against over the micro-batch; mutual information of domain and
expert. Against it: an information that is no higher, or an error that is higher.
"""

from __future__ import annotations

import torch
from torch import nn

from mixwell.claims._judging import no_worse, provided
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import Batch, Clusters, build, test
from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.core.routing import Context

DOMAINS, STEPS, COEFFICIENT = 4, 250, 0.1


class Domain(Clusters):
    """The four clusters of one domain out of sixteen."""

    def __init__(self, seed: int, domain: int) -> None:
        super().__init__(seed)
        self.shares_C = (torch.arange(16) // 4 == domain).float()


def measure(seed: int, over_step: bool) -> tuple[float, float]:
    """(information of domain and expert in nats, error) with the load counted over the step or the micro-batch."""
    rule = registry.find("experts.balance.global_batch")
    layer = build(seed, {"router": {"method": "top_k", "k": 2}, "balance": {}})
    buffer = rule.module().Buffer() if over_step else None
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-3)
    domains, draws = [Domain(seed, d) for d in range(DOMAINS)], generator(seed, "fit")
    layer.train()
    for step in range(STEPS):
        optimizer.zero_grad()
        for domain in domains:
            batch, context = domain(128, draws), Context(step=step)
            mixed = layer(batch.x_TD, context)
            balance = rule.load()(mixed.routing, rule.module().Config(), context, buffer)
            loss = nn.functional.mse_loss(mixed.y_TD, batch.y_TD) + COEFFICIENT * balance
            (loss / DOMAINS).backward()
        optimizer.step()
    batch, mixed = test(layer.eval(), Clusters(seed), seed)
    return information(mixed.routing, batch), float(nn.functional.mse_loss(mixed.y_TD, batch.y_TD))


def information(routing: object, batch: Batch) -> float:
    """Mutual information of domain and expert, nats."""
    entry = registry.find("experts.analysis.specialisation")
    return entry.load()(routing, entry.module().Config(), Context(labels_T=batch.labels_T // 4))["information_nats"]


def claim(bench: Bench) -> Evidence:
    """Specialisation by domain under the two ways to count the load."""
    method, baseline = ([measure(seed, over_step) for seed in bench.seeds] for over_step in (True, False))
    evidence = weigh("Balance over the global batch lets experts specialise by domain at lower loss.",
                     "mutual information of domain and expert, nats", [m[0] for m in method],
                     [b[0] for b in baseline], lower_is_better=False)
    ours, theirs = [m[1] for m in method], [b[1] for b in baseline]
    return provided(evidence, no_worse(ours, theirs, 0.0), "Its error is higher.", method_error=ours,
                    baseline_error=theirs)
