"""pMoE: experts that take few patches of an example learn from fewer examples than one network that sees them all.

Paper: Patch-level Routing in Mixture-of-Experts is Provably Sample-efficient for Convolutional Neural Networks.
Tried: examples of sixteen patches of width 32, one of which holds the pattern of the class and fifteen one of ten
other patterns each, with noise; four experts of 16 filters that take two patches each, trained jointly with the router,
against one expert of 64 filters that takes all; examples needed for 95 % accuracy after 200 steps of 64, in powers of
two from 16 to 4,096, as a logarithm. Against it: no fewer examples, or half a power more than with eight patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mixwell.claims._methods import build, widen
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.grids import RATES
from mixwell.claims.starts import level
from mixwell.core.rng import generator
from mixwell.core.routing import Context

PATCHES, WIDTH, NOISE = 16, 32, 0.3
SMALLEST, LARGEST, ENOUGH = 16, 4096, 0.95
SIZE = 0.1  # root mean square of a layer's output at its start


def examples(seed: int, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """(patches [N, P, D], labels of -1 and 1 [N])."""
    square = torch.randn(WIDTH, WIDTH, generator=generator(seed, "patterns"))
    patterns, _ = torch.linalg.qr(square)
    rows = torch.arange(count)
    label = torch.randint(2, (count,), generator=draws)
    which = torch.randint(2, 12, (count, PATCHES), generator=draws)
    place = torch.randint(PATCHES, (count,), generator=draws)
    which[rows, place] = label
    noise = NOISE * torch.randn(count, PATCHES, WIDTH, generator=draws)
    signs = 2.0 * label - 1
    return patterns[which] + noise, signs


class Reader:
    """A mixture over patches, and a fixed reader of the sum of its outputs."""

    def __init__(self, seed: int, **sizes: int) -> None:
        self.layer = build("experts.layers.patch_level", WIDTH, generator=generator(seed, "layer"), **sizes)
        widen([self.layer.up_proj, self.layer.down_proj])
        self.reader = torch.randn(WIDTH, generator=generator(seed, "reader"))

    def __call__(self, x_NPD: Tensor) -> Tensor:
        """Scores [N]."""
        mixed = self.layer(*given(x_NPD))
        y_NPD = mixed.y_TD.view(*x_NPD.shape)
        return y_NPD.sum(1) @ self.reader


def given(x_NPD: Tensor) -> tuple[Tensor, Context]:
    """What a layer is handed."""
    shape = len(x_NPD), PATCHES
    rows = x_NPD.flatten(0, 1)
    return rows, Context(batch_shape=shape)


def accuracy(seed: int, count: int, lr: float, **sizes: int) -> float:
    """Share of 2,048 fresh examples that are classified rightly after training on `count`."""
    draws, model = generator(seed, "examples"), Reader(seed, **sizes)
    x, label = examples(seed, count, draws)
    level(model.layer, given(x), SIZE)
    optimizer = torch.optim.Adam(model.layer.parameters(), lr=lr)
    for step in range(200):
        places = torch.arange(64) + step * 64
        rows = places % count
        margin = label[rows] * model(x[rows])
        loss = nn.functional.softplus(-margin).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, label = examples(seed, 2048, draws)
    with torch.no_grad():
        right = model(x).sign() == label
    return float(right.float().mean())


def needed(bench: Bench, seed: int, *, lr: float, **sizes: int) -> float:
    """Logarithm to base 2 of the examples needed; one more than the largest tried where those are too few."""
    count = SMALLEST
    while count <= LARGEST and accuracy(seed, count, lr, **sizes) < ENOUGH:
        count *= 2
    return math.log2(count)


def routed(patches: int) -> Side:
    """Four experts of 16 filters that take this many patches each."""
    sizes = {"num_experts": 4, "hidden_dim": 16, "patches": patches}
    return Side(needed, sizes, {"lr": RATES})


EVERY = {"num_experts": 1, "hidden_dim": 64, "patches": PATCHES}

CLAIM = Claim(
    "Few routed patches need fewer examples than one network on all.", "log2 of the examples needed for 95 % accuracy",
    provided=(no_worse(baseline="eight patches", margin=0.5, relative=False),),
    sides={"method": routed(2), "baseline": Side(needed, EVERY, {"lr": RATES}), "eight patches": routed(8)})
