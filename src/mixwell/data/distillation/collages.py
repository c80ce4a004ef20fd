"""Collages: the easy images of each class, several to a stored one, with hard labels (prune, combine, augment).

**Equation:** EL2N_i = mean over K briefly trained networks of ||softmax(f_k(x_i)) - onehot(y_i)||_2. Of each class the
    M r^2 images of lowest score are kept (or the highest, or of even draws); each is averaged down by r and r^2 of
    them are tiled in one canvas of the plain size. Students cut the canvases apart, grow the tiles back and crop.
**Shapes:** images [N, C, H, W], H and W multiples of r; stored [Y M, C, H, W].
**Reference:** Xiao et al. 2025 (2502.06434), Prune, Combine, and Augment.
**Differs:** the released code holds the benchmark alone (`compact.Training` follows it: AdamW with a cosine, soft
    labels of temperature 20 without T^2); which score, how many easy ones and how they are tiled is our reading. A
    canvas takes as many bytes as an image and counts as one.
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
from mixwell.data.compact import (
    Build,
    Compact,
    Images,
    Training,
    check,
    joined,
    small_network,
    trained,
    two_brightnesses,
)
from mixwell.mixing import check_least, check_one_of

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
        check_least(self, per_class=1, tiles=1, networks=1, steps=1)
        check_one_of(self, keep=ORDERS)


@method(title="Collages of easy images (prune, combine, augment)", year=2025,
        paper="Rethinking Large-scale Dataset Compression: Shifting Focus From Labels to Images")
def collages(data: Images, build: Build, config: Config, generator: torch.Generator) -> Compact:
    """Canvases of kept images, class by class; sides that r does not divide raise `MixwellError`."""
    tiles = config.tiles
    held = tiles**2
    each = config.per_class * held
    check(data, each)
    high, wide = data.images_NCHW.shape[-2:]
    if high % tiles or wide % tiles:
        raise MixwellError(f"images of {high} x {wide} cannot hold {tiles} tiles a side; expected multiples of that.")
    score_N = scores(data, build, config, generator)
    kept = of_lowest(score_N, data.classes_N, each)
    images, classes = data.rows(kept)
    small = functional.avg_pool2d(images, tiles)
    canvases = joined(small, tiles)
    return Compact(canvases, classes[::held], tiles)


def scores(data: Images, build: Build, config: Config, generator: torch.Generator) -> Tensor:
    """What images are kept by, the lowest first: [N]."""
    count = len(data.classes_N)
    if config.keep == "any":
        return torch.rand(count, generator=generator)
    error_N = el2n(data, build, config, generator)
    return error_N if config.keep == "easiest" else -error_N


def el2n(data: Images, build: Build, config: Config, generator: torch.Generator) -> Tensor:
    """Length of the error of the predicted shares, in the mean of briefly trained networks: [N]."""
    truth_NY = functional.one_hot(data.classes_N, data.kinds)
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
    for label in classes_N.unique():
        found = torch.nonzero(classes_N == label)
        own = found.flatten()
        order = torch.argsort(score_N[own], stable=True)
        first = order[:each]
        kept.append(own[first])
    return torch.cat(kept)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two classes, one brighter than the other."""
    data = two_brightnesses(generator)
    config = Config(per_class=2, networks=1, steps=10)
    return {"data": data, "build": small_network, "config": config}
