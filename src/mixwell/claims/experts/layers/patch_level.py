"""pMoE: experts that take few patches of an example learn from fewer examples than one network that sees them all.

Paper: Patch-level Routing in Mixture-of-Experts is Provably Sample-efficient for Convolutional Neural Networks.
Tried: examples of sixteen patches of width 32, one of which holds the pattern of the class and fifteen one of ten
other patterns each, with noise; four experts of 16 filters that take two patches each, trained jointly with the router,
against one expert of 64 filters that takes all; examples needed for 95 % accuracy after 200 steps of 64, in powers of
four from 16 to 4,096, as a logarithm. Beside: eight patches. Against it: no fewer examples, or fewer with eight
patches than with two.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mixwell.claims._judging import no_worse, provided
from mixwell.claims._methods import build, widen
from mixwell.claims._series import by_seed
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.core.routing import Context

PATCHES, WIDTH, LARGEST = 16, 32, 4096


def examples(seed: int, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """(patches [N, P, D], labels of -1 and 1 [N])."""
    square = torch.randn(WIDTH, WIDTH, generator=generator(seed, "patterns"))
    patterns = torch.linalg.qr(square)[0]
    label = torch.randint(2, (count,), generator=draws)
    which = 2 + torch.randint(10, (count, PATCHES), generator=draws)
    place = torch.randint(PATCHES, (count,), generator=draws)
    which[torch.arange(count), place] = label
    noise = 0.1 * torch.randn(count, PATCHES, WIDTH, generator=draws)
    return patterns[which] + noise, 2.0 * label - 1


class Reader:
    """A mixture over patches, and a fixed reader of the sum of its outputs."""

    def __init__(self, seed: int, experts: int, filters: int, patches: int) -> None:
        sizes = {"num_experts": experts, "hidden_dim": filters, "patches": patches}
        self.layer = build("experts.layers.patch_level", WIDTH, generator=generator(seed, "layer"), **sizes)
        widen([self.layer.up_proj, self.layer.down_proj])
        self.reader = torch.randn(WIDTH, generator=generator(seed, "reader"))

    def __call__(self, x_NPD: Tensor) -> Tensor:
        """Scores [N]."""
        context = Context(batch_shape=(len(x_NPD), PATCHES))
        mixed = self.layer(x_NPD.flatten(0, 1), context)
        y_NPD = mixed.y_TD.view(*x_NPD.shape)
        return y_NPD.sum(1) @ self.reader


def accuracy(seed: int, count: int, *sizes: int) -> float:
    """Share of 2,048 fresh examples that are classified rightly after training on `count`."""
    draws, model = generator(seed, "examples"), Reader(seed, *sizes)
    x, label = examples(seed, count, draws)
    optimizer = torch.optim.Adam(model.layer.parameters(), lr=3e-3)
    for step in range(200):
        rows = torch.arange(step * 64, (step + 1) * 64) % count
        margin = label[rows] * model(x[rows])
        optimizer.zero_grad()
        nn.functional.softplus(-margin).mean().backward()
        optimizer.step()
    x, label = examples(seed, 2048, draws)
    with torch.no_grad():
        right = model(x).sign() == label
    return float(right.float().mean())


def needed(seed: int, *sizes: int) -> float:
    """Logarithm to base 2 of the examples needed; two more than the largest tried where those are too few."""
    count = 16
    while count <= LARGEST and accuracy(seed, count, *sizes) < 0.95:
        count *= 4
    return math.log2(count)


def claim(bench: Bench) -> Evidence:
    """Examples needed with two routed patches against one network on all."""
    two = by_seed(bench, needed, 4, 16, 2)
    eight = by_seed(bench, needed, 4, 16, 8)
    every = by_seed(bench, needed, 1, 64, PATCHES)
    evidence = weigh("Few routed patches need fewer examples than one network on all.",
                     "log2 of the examples needed for 95 % accuracy", two, every,
                     note="The task is too easy to tell on this grid: 16 to 64 examples are enough for all three.")
    return provided(evidence, no_worse(two, eight, 0.0), "Fewer examples are needed with eight patches.",
                    eight_patches=eight)
