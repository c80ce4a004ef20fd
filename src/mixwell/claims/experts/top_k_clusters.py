"""Theory of mixtures: nonlinear experts behind a router learn a clustered task that one nonlinear network cannot.

Paper: Towards Understanding Mixture of Experts in Deep Learning; on the method top_k at k = 1.
Tried: the paper's data (four clusters; four patches of width 50 with the label's signal, the cluster's centre, another
cluster's signal with a random sign, and noise), experts that are convolutions over the patches with cubic activation;
eight experts of 16 filters by top-1 against one expert of 128 filters; accuracy on fresh examples after 500 steps of
Adam on 16,000 examples. Against it: an accuracy that is no higher.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixwell.claims.bench import Bench
from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.core.routing import Context

CLUSTERS, WIDTH, STEPS, COUNT = 4, 50, 500, 16_000


class Patches:
    """Examples of four patches in random order, after the paper's definition."""

    def __init__(self, draws: torch.Generator) -> None:
        basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draws))[0]
        self.signals, self.centres = basis[:CLUSTERS], basis[CLUSTERS : 2 * CLUSTERS]

    def draw(self, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """(patches [N, 4, D], labels of -1 and 1 [N])."""

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, 1, generator=draws)

        def signs() -> Tensor:
            return 2.0 * torch.randint(2, (count, 1), generator=draws) - 1

        own = torch.randint(CLUSTERS, (count,), generator=draws)
        other = (own + torch.randint(1, CLUSTERS, (count,), generator=draws)) % CLUSTERS
        label = signs()
        patches = torch.stack([
            uniform(0.5, 2) * label * self.signals[own], uniform(1, 2) * self.centres[own],
            uniform(0.5, 3) * signs() * self.signals[other],
            torch.randn(count, WIDTH, generator=draws) / WIDTH**0.5], 1)
        order = torch.rand(count, 4, generator=draws).argsort(1)
        return patches.gather(1, order.unsqueeze(2).expand_as(patches)), label[:, 0]


class Mixture(nn.Module):
    """Experts f_m(x) = sum over filters and patches of (w . x_p)^3 behind a top-1 router on the sum of the patches."""

    def __init__(self, experts: int, filters: int, draws: torch.Generator) -> None:
        super().__init__()
        self.filters = nn.Parameter(0.1 * torch.randn(experts, filters, WIDTH, generator=draws))
        entry = registry.find("experts.routers.top_k")
        self.router = entry.load()(WIDTH, experts, entry.module().Config(k=1), draws)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(score [N], Switch loss)."""
        routing = self.router(patches.sum(1), Context())
        every = torch.einsum("npd,efd->nepf", patches, self.filters).pow(3).sum((2, 3))
        switch = registry.find("experts.balance.switch")
        return (routing.dense_TE() * every).sum(1), switch.load()(routing, switch.module().Config(), Context())


def accuracy(seed: int, experts: int, filters: int) -> float:
    """Share of fresh examples whose sign is right after training."""
    draws = generator(seed, "patches")
    data = Patches(draws)
    patches, labels = data.draw(COUNT, draws)
    model = Mixture(experts, filters, draws)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        rows = slice(step % 16 * 1000, (step % 16 + 1) * 1000)
        score, balance = model(patches[rows])
        optimizer.zero_grad()
        (nn.functional.softplus(-labels[rows] * score).mean() + 0.01 * balance).backward()
        optimizer.step()
    patches, labels = data.draw(4096, draws)
    with torch.no_grad():
        return float((model(patches)[0].sign() == labels).float().mean())


def claim(bench: Bench) -> Evidence:
    """Accuracy of eight experts against one of the same number of filters."""
    method, baseline = ([accuracy(seed, experts, 128 // experts) for seed in bench.seeds] for experts in (8, 1))
    return weigh("A mixture of nonlinear experts learns clusters that one network cannot.",
                 "accuracy on fresh examples", method, baseline, lower_is_better=False)
