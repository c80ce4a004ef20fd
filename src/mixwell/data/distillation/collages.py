"""Collages: of each class the images that are easy, several to a stored one, with hard labels (prune, combine, augment).

**Equation:** EL2N_i = mean over K briefly trained networks of ||softmax(f_k(x_i)) - onehot(y_i)||_2. Of each class the
    M r^2 images of lowest score are kept (or the highest, or of even draws); each is averaged down by r and r^2 of
    them are tiled in one canvas of the plain size. Students cut the canvases apart, grow the tiles back and crop.
**Shapes:** images [N, C, H, W], H and W multiples of r; stored [Y M, C, H, W].
**Reference:** Xiao et al. 2025 (2502.06434), Prune, Combine, and Augment.
**Differs:** the released code holds the benchmark alone (`compact.Training` follows it: AdamW with a cosine, soft labels
    of temperature 20 without T^2); which score, how many easy ones and how they are tiled is our reading. A canvas takes
    as many bytes as an image and counts as one.
**Fails when:** images are so small that 1/r of their side shows nothing; budgets so large that easy images repeat each
    other (draw from `hardest` or `any` then).
**Cost:** K trainings of `steps` steps, and one pass over the images with each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.rng import spawn
from mixwell.data.compact import Build, Compact, ConvNet, Images, Training, check, joined, trained

ORDERS = ("easiest", "hardest", "any")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of collages; `ValueError` for a value out of range."""

    per_class: int = 10  # M: stored images of each class, at least 1
    tiles: int = 2  # r: images along a side of a canvas, at least 1
    keep: str = "easiest"  # which images stay: so, hardest, or any
    networks: int = 3  # K, at least 1
    steps: int = 60  # of each network's short training, at least 1

    def __post_init__(self) -> None:
        if min(self.per_class, self.tiles, self.networks, self.steps) < 1:
            raise ValueError(f"per_class={self.per_class}, tiles={self.tiles}, networks={self.networks}, "
                             f"steps={self.steps}; expected at least 1 of each")
        if self.keep not in ORDERS:
            raise ValueError(f"keep is {self.keep!r}; expected one of {', '.join(ORDERS)}")


@method(title="Collages of easy images (prune, combine, augment)", year=2025,
        paper="Rethinking Large-scale Dataset Compression: Shifting Focus From Labels to Images")
def collages(data: Images, build: Build, config: Config, generator: torch.Generator) -> Compact:
    """Canvases of kept images, class by class; sides that r does not divide raise `MixwellError`."""
    each = config.per_class * config.tiles**2
    check(data, each)
    sides = data.images_NCHW.shape[-2:]
    if any(side % config.tiles for side in sides):
        raise MixwellError(f"images of {sides[0]} x {sides[1]} cannot hold {config.tiles} tiles a side; expected "
                           "multiples of that.")
    score_N = scores(data, build, config, generator)
    kept = of_lowest(score_N, data.classes_N, each)
    images, classes = data.rows(kept)
    small = functional.avg_pool2d(images, config.tiles)
    canvases = joined(small, config.tiles)
    return Compact(canvases, classes[:: config.tiles**2], config.tiles)


def scores(data: Images, build: Build, config: Config, generator: torch.Generator) -> Tensor:
    """What images are kept by, the lowest first: [N]."""
    if config.keep == "any":
        return torch.rand(len(data.classes_N), generator=generator)
    error_N = el2n(data, build, config, generator)
    return error_N if config.keep == "easiest" else -error_N


def el2n(data: Images, build: Build, config: Config, generator: torch.Generator) -> Tensor:
    """Length of the error of the predicted shares, in the mean of briefly trained networks: [N]."""
    truth_NY = functional.one_hot(data.classes_N, data.count)
    brief = Training(steps=config.steps)
    found = []
    for draws in spawn(generator, config.networks):
        network = trained(build(draws), data, brief, draws)
        with torch.no_grad():
            share_NY = network(data.images_NCHW).softmax(-1)
        error_NY = share_NY - truth_NY
        found.append(error_NY.norm(dim=-1))
    return torch.stack(found).mean(0)


def of_lowest(score_N: Tensor, classes_N: Tensor, each: int) -> Tensor:
    """Places of the lowest scores of each class, in order, class by class."""
    kept = []
    for label in range(int(classes_N.max()) + 1):
        own = torch.nonzero(classes_N == label).flatten()
        order = torch.argsort(score_N[own], stable=True)
        kept.append(own[order[:each]])
    return torch.cat(kept)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twenty images of each of two classes, one brighter than the other."""
    classes_N = torch.arange(2).repeat(20)
    noise = torch.rand(40, 1, 8, 8, generator=generator)
    images = noise + classes_N[:, None, None, None]

    def build(draws: torch.Generator) -> ConvNet:
        return ConvNet(1, 8, 2, draws, width=4)

    return {"data": Images(images, classes_N), "build": build, "config": Config(per_class=2, networks=1, steps=10)}
