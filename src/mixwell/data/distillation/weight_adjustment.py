"""Directed weight adjustment: each batch of synthetic images is made with a teacher moved away from that batch.

**Equation:** per batch of one image of each class (real ones at first): K times theta <- theta + (rho / K) g /
    (||g||_2 + 1e-12), g the gradient of the teacher's cross-entropy on the batch as it starts; then Adam on the pixels
    of CE + r sum_l w_l (v ||var_l - Var_l||_2 + ||mean_l - Mean_l||_2), mean_l and var_l (biased) of what enters batch
    norm l, Mean_l and Var_l its running statistics; w is 10 at the first norm and 1 at others.
**Shapes:** images [N, C, H, W]; stored [Y M, C, H, W], class by class.
**Reference:** Du et al. 2024 (2409.17612); constants of the released code for CIFAR.
**Differs:** none in the loss; the move is made on the batch unrolled (the code rolls it once). Pixels stay in the range
    of the data's own; the teacher is trained here for `teacher_steps`. `direction = "random"` moves the teacher as far
    on a random line, `none` not at all (SRe2L's loss).
**Fails when:** the network has no batch norm; few steps from real images (diversity is then the start's).
**Cost:** M (K + steps) forward and backward passes of one image of each class.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.data.compact import (
    Build,
    Compact,
    Images,
    Training,
    check,
    of_each,
    small_network,
    trained,
    two_brightnesses,
)
from mixwell.mixing import check_above, check_least, check_one_of

DIRECTIONS = ("directed", "random", "none")
Norms = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of directed weight adjustment; `ValueError` for a value out of range."""

    per_class: int = 10  # M: images of each class, at least 1
    direction: str = "directed"  # of the teacher's move: so, random, or none
    distance: float = 0.015  # rho: length of the move, 0 or more
    ascents: int = 12  # K: steps of the move, at least 1
    steps: int = 1000  # on the pixels, 0 or more
    lr: float = 0.25  # of Adam on the pixels, falling to 0 by a cosine, above 0
    statistics: float = 0.01  # r: weight of the statistics, 0 or more
    variance: float = 11.0  # v: of the variances among them, 0 or more
    first: float = 10.0  # w of the first norm, 0 or more
    shift: int = 4  # pixels that images are rolled by at most in each step, 0 or more
    teacher_steps: int = 300  # at least 1

    def __post_init__(self) -> None:
        check_least(self, per_class=1, ascents=1, teacher_steps=1)
        check_least(self, distance=0, steps=0, statistics=0, variance=0, first=0, shift=0)
        check_above(self, lr=0)
        check_one_of(self, direction=DIRECTIONS)


@method(title="Directed weight adjustment", year=2024,
        paper="Diversity-Driven Synthesis: Enhancing Dataset Distillation through Directed Weight Adjustment")
def weight_adjustment(data: Images, build: Build, config: Config, generator: torch.Generator) -> Compact:
    """M batches of synthetic images; a network without batch norm raises `MixwellError`."""
    check(data, config.per_class)
    training = Training(steps=config.teacher_steps)
    teacher = trained(build(generator), data, training, generator)
    norms_of(teacher)
    places = of_each(data, config.per_class, generator)
    batches = places.reshape(data.kinds, config.per_class).T
    low, high = data.images_NCHW.aminmax()
    limits = low.item(), high.item()
    made = []
    for batch in batches:
        start = data.rows(batch)
        moved = adjusted(teacher, start, config, generator)
        pixels = synthesised(moved, start, limits, config, generator)
        made.append(pixels)
    images_YMCHW = torch.stack(made, 1)
    classes = torch.arange(data.kinds)
    return Compact(images_YMCHW.flatten(0, 1), classes.repeat_interleave(config.per_class))


def norms_of(network: nn.Module) -> list[Norms]:
    """Batch norms in their order; `MixwellError` where there is none."""
    found = [part for part in network.modules() if isinstance(part, Norms) and part.running_mean is not None]
    if not found:
        raise MixwellError("the network has no batch norm with running statistics; synthesis matches these.")
    return found


def adjusted(teacher: nn.Module, start: Images, config: Config, generator: torch.Generator) -> nn.Module:
    """A copy of the teacher, moved: uphill on the batch, or on a random line as far."""
    moved = copy.deepcopy(teacher)
    if config.direction == "none":
        return moved.requires_grad_(False)
    weights = list(moved.parameters())
    if config.direction == "random":
        line = [torch.randn(weight.shape, generator=generator) for weight in weights]
        _step(weights, line, config.distance)
        return moved.requires_grad_(False)
    for _ in range(config.ascents):
        loss = functional.cross_entropy(moved(start.images_NCHW), start.classes_N)
        slopes = torch.autograd.grad(loss, weights)
        _step(weights, slopes, config.distance / config.ascents)
    return moved.requires_grad_(False)


@torch.no_grad()
def _step(weights: list[nn.Parameter], line: list[Tensor] | tuple[Tensor, ...], length: float) -> None:
    """Move all weights by `length` along one line."""
    lengths = [part.norm() for part in line]
    size = torch.stack(lengths).norm() + 1e-12
    scale = length / size
    for weight, part in zip(weights, line):
        weight.add_(scale * part)


def synthesised(teacher: nn.Module, start: Images, limits: tuple[float, float], config: Config,
                generator: torch.Generator) -> Tensor:
    """The batch's images after all steps: [Y, C, H, W]."""
    pixels = start.images_NCHW.clone().requires_grad_()
    optimiser = torch.optim.Adam([pixels], lr=config.lr, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(config.steps, 1))
    for _ in range(config.steps):
        by = torch.randint(config.shift + 1, (2,), generator=generator)
        seen = torch.roll(pixels, by.tolist(), (-2, -1))
        loss = synthesis_loss(teacher, seen, start.classes_N, config)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            pixels.clamp_(*limits)
    return pixels.detach()


def synthesis_loss(teacher: nn.Module, images: Tensor, classes: Tensor, config: Config) -> Tensor:
    """Cross-entropy, and how far the batch's statistics are from those of the teacher's data."""
    with _entering(norms_of(teacher)) as entered:
        logits = teacher(images)
    off = images.new_zeros(())
    weight = config.first
    for norm, x in entered:
        apart = mismatch(norm, x, config.variance)
        off = off + weight * apart
        weight = 1.0
    wrong = functional.cross_entropy(logits, classes)
    return wrong + config.statistics * off


def mismatch(norm: Norms, x: Tensor, variance: float) -> Tensor:
    """Distance of means, and v times that of variances; lengths, not squares."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    channels_first = x.transpose(0, 1)
    rows = channels_first.flatten(1)
    mean_off = rows.mean(1) - mean
    var_off = rows.var(1, correction=0) - var
    return mean_off.norm() + variance * var_off.norm()


@contextmanager
def _entering(norms: list[Norms]) -> Iterator[list[tuple[Norms, Tensor]]]:
    """What enters each norm in the forward pass inside, in their order."""
    seen: list[tuple[Norms, Tensor]] = []

    def keep(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, Norms)
        seen.append((norm, given[0]))

    hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def spread(features_ND: Tensor, classes_N: Tensor) -> float:
    """Mean distance of two images' features inside a class, in the mean of the classes: how diverse a set is."""
    found = []
    for label in range(int(classes_N.max()) + 1):
        own = features_ND[classes_N == label]
        distances = torch.pdist(own)
        found.append(distances.mean())
    return float(torch.stack(found).mean())


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two classes, one brighter than the other."""
    data = two_brightnesses(generator)
    config = Config(per_class=2, steps=5, teacher_steps=10)
    return {"data": data, "build": small_network, "config": config}
