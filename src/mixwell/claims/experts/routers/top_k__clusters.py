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

from mixwell.claims._methods import build, call
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.grids import RATES
from mixwell.core.rng import generator
from mixwell.core.routing import Context

CLUSTERS, WIDTH, STEPS, COUNT = 4, 50, 500, 16_000


class Patches:
    """Examples of four patches in random order, after the paper's definition."""

    def __init__(self, draws: torch.Generator) -> None:
        square = torch.randn(WIDTH, WIDTH, generator=draws)
        basis = torch.linalg.qr(square)[0]
        self.signals = basis[:CLUSTERS]
        self.centres = basis[CLUSTERS : 2 * CLUSTERS]

    def draw(self, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """(patches [N, 4, D], labels of -1 and 1 [N])."""

        def uniform(low: float, high: float) -> Tensor:
            even = torch.rand(count, 1, generator=draws)
            return low + (high - low) * even

        def signs() -> Tensor:
            coins = torch.randint(2, (count, 1), generator=draws)
            return 2.0 * coins - 1

        own = torch.randint(CLUSTERS, (count,), generator=draws)
        step = torch.randint(1, CLUSTERS, (count,), generator=draws)
        other = (own + step) % CLUSTERS
        label = signs()
        signal = uniform(0.5, 2) * label * self.signals[own]
        centre = uniform(1, 2) * self.centres[own]
        misleading = uniform(0.5, 3) * signs() * self.signals[other]
        noise = torch.randn(count, WIDTH, generator=draws) / WIDTH**0.5
        patches = torch.stack([signal, centre, misleading, noise], 1)
        order = torch.rand(count, 4, generator=draws).argsort(1)
        into = order.unsqueeze(2).expand_as(patches)
        return patches.gather(1, into), label[:, 0]


class Mixture(nn.Module):
    """Experts f_m(x) = sum over filters and patches of (w . x_p)^3 behind a top-1 router on the sum of the patches."""

    def __init__(self, experts: int, filters: int, draws: torch.Generator) -> None:
        super().__init__()
        drawn = torch.randn(experts, filters, WIDTH, generator=draws)
        self.filters = nn.Parameter(0.1 * drawn)
        self.router = build("experts.routers.top_k", WIDTH, experts, generator=draws, k=1)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(score [N], Switch loss)."""
        routing = self.router(patches.sum(1), Context())
        answers = torch.einsum("npd,efd->nepf", patches, self.filters)
        every = answers.pow(3).sum((2, 3))
        score = (routing.dense_TE() * every).sum(1)
        return score, call("experts.balance.switch", routing)


def accuracy(bench: Bench, seed: int, *, experts: int, lr: float) -> float:
    """Share of fresh examples whose sign is right after training, with 128 filters in all."""
    draws = generator(seed, "patches")
    data = Patches(draws)
    patches, labels = data.draw(COUNT, draws)
    model = Mixture(experts, 128 // experts, draws)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(STEPS):
        first = step % 16 * 1000
        rows = slice(first, first + 1000)
        score, balance = model(patches[rows])
        loss = nn.functional.softplus(-labels[rows] * score).mean()
        optimizer.zero_grad()
        (loss + 0.01 * balance).backward()
        optimizer.step()
    patches, labels = data.draw(4096, draws)
    with torch.no_grad():
        score, _ = model(patches)
    right = score.sign() == labels
    return float(right.float().mean())


CLAIM = Claim(
    "A mixture of nonlinear experts learns clusters that one network cannot.", "accuracy on fresh examples",
    lower_is_better=False,
    sides={"method": Side(accuracy, {"experts": 8}, {"lr": RATES}),
           "baseline": Side(accuracy, {"experts": 1}, {"lr": RATES})})
