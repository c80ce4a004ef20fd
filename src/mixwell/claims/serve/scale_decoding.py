"""Collaborative decoding: a large model for coarse scales and a small one for the finest keep the quality for less.

Paper: Collaborative Decoding Makes Visual Auto-Regressive Modeling Efficient.
Tried: digits as maps of 1, 2, 4 and 8 places a side in 12 grey levels, each scale's law from the scale before by three
convolutions, 16 channels for the large model and 4 for the small one, each trained 120 steps on all scales: held-out
nats an image of large for three scales and small for the last, against large for all; the learning rate is tuned for
both. Against it: more than a fiftieth of the nats more, or less than a third of the multiplications saved. Beside: the
small model for all scales.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.claims._digits import adam, batches, digits, drawn, rate
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.core.rng import generator

SIDES, LEVELS, STEPS, SIZE = (1, 2, 4, 8), 12, 120, 32
LARGE, SMALL = 16, 4
RATES = (0.003, 0.01, 0.03)


def pyramid(x: Tensor) -> list[Tensor]:
    """The maps of images [N, 64] as levels, int64 [N, side, side] for each scale."""
    images = x.view(-1, 1, 8, 8)
    even = (images + 1) / 2
    maps = [F.adaptive_avg_pool2d(even, side).squeeze(1) for side in SIDES]
    return [(part * (LEVELS - 1)).round().long() for part in maps]


class Scales(nn.Module):
    """The law of each scale from the one before: its map drawn larger, three convolutions, a bias of its own."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        draws = generator(seed, f"scales {channels}")
        widths = (LEVELS, channels, channels, LEVELS)
        self.kernels = nn.ParameterList()
        for inputs, outputs in itertools.pairwise(widths):
            kernel = drawn((outputs, inputs, 3, 3), draws, 2.0)
            self.kernels.append(kernel)
        self.biases = nn.Parameter(torch.zeros(len(SIDES), channels))

    def forward(self, before: Tensor | None, scale: int, rows: int) -> Tensor:
        """Logits [N, LEVELS, side, side] of a scale."""
        side = SIDES[scale]
        maps = torch.zeros(rows, LEVELS, side, side)
        if before is not None:
            places = F.one_hot(before, LEVELS).float()
            planes = places.movedim(-1, 1)
            maps = F.interpolate(planes, (side, side))
        own = self.biases[scale].view(1, -1, 1, 1)
        first, second, last = self.kernels
        hidden = F.conv2d(maps, first, padding=1) + own
        deeper = F.conv2d(hidden.relu(), second, padding=1)
        return F.conv2d(deeper.relu(), last, padding=1)

    def losses(self, maps: Sequence[Tensor]) -> Tensor:
        """Nats of each scale, the mean over images of the sum over places."""
        found = []
        before, rows = None, len(maps[0])
        for scale, wanted in enumerate(maps):
            logits = self(before, scale, rows)
            total = F.cross_entropy(logits, wanted, reduction="sum")
            found.append(total / rows)
            before = wanted
        return torch.stack(found)

    def work(self, scale: int) -> int:
        """Multiplications of a scale."""
        places = SIDES[scale] ** 2
        return places * sum(kernel.numel() for kernel in self.kernels)


@functools.lru_cache(maxsize=4)
def trained(channels: int, seed: int, lr: float) -> Scales:
    """A model of all scales."""
    net = Scales(channels, seed)
    move = adam(net)
    x = digits().x
    for step, rows in enumerate(batches(seed, STEPS, SIZE)):
        maps = pyramid(x[rows])
        net.losses(maps).sum().backward()
        now = rate(lr, step, STEPS)
        move(now)
    return net


def quality(bench: Bench, seed: int, *, lr: float, coarse: int, fine: int) -> dict[str, float]:
    """Held-out nats an image, and multiplications in thousands, with so many channels for three scales and the last."""
    first, last = trained(coarse, seed, lr), trained(fine, seed, lr)
    maps = pyramid(digits().held_x)
    with torch.no_grad():
        own, other = first.losses(maps), last.losses(maps)
    nats = own[:-1].sum() + other[-1]
    end = len(SIDES) - 1
    work = sum(first.work(scale) for scale in range(end)) + last.work(end)
    return {"nats": float(nats), "work": work / 1000}


def _side(coarse: int, fine: int) -> Side:
    return Side(quality, {"coarse": coarse, "fine": fine}, {"lr": RATES})


CLAIM = Claim(
    "Large for coarse scales and small for the finest loses less than a fiftieth.", "held-out nats an image",
    quantity="nats", relative=True, at_least=-0.02,
    provided=(Comparison(quantity="work", relative=True, at_least=1 / 3),),
    sides={"method": _side(LARGE, SMALL), "baseline": _side(LARGE, LARGE), "small alone": _side(SMALL, SMALL)})
