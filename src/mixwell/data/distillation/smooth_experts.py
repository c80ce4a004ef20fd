"""Trajectory matching with smooth experts: images on which a student walks where networks trained on all data walked.

**Equation:** experts theta_0..theta_T (epochs) by descent on a_e CE + 2 mean (||d sum f / dx||_2 - 1)^2, a_e = 0.5,
    0.55 to 0.95 in the first ten epochs and 1 after. From a random early t, theta_t moved by d * theta_t (d normal of
    length 1 in each matrix), N steps with momentum on b_t CE over the images S lead to s_N; S and the step follow
    ||s_N - theta_{t+M}||^2 / ||s_0 - theta_{t+M}||^2, and the same at each epoch between. b_t = log_5(t - h + 8) from
    h = t_max / 2 on, 1 / log_5(h - t + 8) before. S starts at real images nearest to the centres of an expert's
    logits.
**Shapes:** images [N, C, H, W]; stored [Y M, C, H, W], class by class, with the learned step `lr`.
**Reference:** Shen et al. 2023 (2310.10541), AST; the released code.
**Differs:** the penalty is of the length of a whole image's gradient; the code takes lengths over channels, pixel by
    pixel, which pulls each pixel's to 1. The step is learned by its logarithm. No augmentation.
**Fails when:** the network has running statistics (refused); t_max reaches epochs in which experts hardly move.
**Cost:** experts: 2 to 3 passes over the data an epoch; then `rounds` times N steps with their second derivatives, all
    N kept in memory.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.rng import spawn
from mixwell.data.compact import Build, Compact, Images, check, of_each, small_network, two_brightnesses
from mixwell.mixing import check_above, check_below, check_least, check_one_of

STARTS = ("representative", "real")
CLIPPED = 10  # epochs whose loss is clipped
Weights = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of trajectory matching; `ValueError` for a value out of range."""

    per_class: int = 10  # M: images of each class, at least 1
    start: str = "representative"  # images of S at first: so, or real ones drawn evenly
    experts: int = 5  # at least 1
    epochs: int = 20  # T of each expert, at least `ahead`
    expert_lr: float = 0.01  # above 0
    expert_batch: int = 256  # at least 1
    expert_momentum: float = 0.9  # 0 to below 1
    penalty: float = 2.0  # weight of the gradient penalty, 0 or more
    clip: bool = True  # smaller losses in the first epochs
    rounds: int = 300  # of matching, 0 or more
    steps: int = 10  # N of the student, at least `ahead`
    ahead: int = 2  # epochs of the expert that these steps match, at least 1
    latest: int = 10  # t_max: starts are drawn below it, 1 to epochs - ahead + 1
    between: bool = True  # match the epochs between as well
    perturb: float = 1.0  # length of d, 0 or more
    balance: bool = True  # b_t; 1 without
    momentum: float = 0.9  # of the student, 0 to below 1
    lr: float = 0.01  # of the student at first, above 0
    image_lr: float = 1.0  # on the pixels, above 0; 3 is too much for digits from 0 to 1
    step_lr: float = 0.01  # on log lr, 0 or more

    def __post_init__(self) -> None:
        check_least(self, per_class=1, experts=1, expert_batch=1, ahead=1, latest=1)
        check_least(self, rounds=0, penalty=0, perturb=0, step_lr=0, momentum=0, expert_momentum=0)
        check_above(self, expert_lr=0, lr=0, image_lr=0)
        check_below(self, momentum=1, expert_momentum=1)
        check_one_of(self, start=STARTS)
        check_least(self, steps=self.ahead, epochs=self.latest + self.ahead - 1)


class Segment(NamedTuple):
    """A piece of an expert's way: where it starts, and the epochs that follow."""

    epoch: int
    begin: Weights
    targets: tuple[Weights, ...]


@method(title="Trajectory matching with smooth experts", year=2023,
        paper="Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert Trajectories")
def smooth_experts(data: Images, build: Build, config: Config, generator: torch.Generator) -> Compact:
    """Images that teach their network the experts' ways; running statistics in it raise `MixwellError`."""
    check(data, config.per_class)
    shell = build(generator)
    if list(shell.buffers()):
        raise MixwellError("the network keeps statistics beside its weights; a trajectory is one of weights alone.")
    ways = []
    for draws in spawn(generator, config.experts):
        way = expert(build(draws), data, config, draws)
        ways.append(way)
    last = ways[0][-1]
    places = start_of(data, shell, last, config, generator)
    images, classes = data.rows(places)
    pixels = images.clone().requires_grad_()
    log_lr = torch.tensor(math.log(config.lr), requires_grad=True)
    small = Images(pixels, classes)
    of_pixels = {"params": [pixels], "lr": config.image_lr}
    of_step = {"params": [log_lr], "lr": config.step_lr}
    optimiser = torch.optim.SGD([of_pixels, of_step], momentum=0.5)
    for _ in range(config.rounds):
        segment = drawn_segment(ways, config, generator)
        lr = log_lr.exp()
        loss = matching_loss(shell, small, lr, segment, config)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    learned = math.exp(log_lr.item())
    return Compact(pixels.detach(), classes, lr=learned)


def expert(network: nn.Module, data: Images, config: Config, generator: torch.Generator) -> list[Weights]:
    """The weights before the first epoch and after each: T + 1 of them."""
    optimiser = torch.optim.SGD(network.parameters(), lr=config.expert_lr, momentum=config.expert_momentum)
    way = [_copied(network)]
    for epoch in range(config.epochs):
        order = torch.randperm(len(data.classes_N), generator=generator)
        for places in order.split(config.expert_batch):
            loss = expert_loss(network, data.rows(places), epoch, config)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        way.append(_copied(network))
        if not torch.isfinite(loss):
            raise MixwellError(f"an expert diverged in epoch {epoch}; take an expert_lr below {config.expert_lr:g}.")
    return way


def _copied(network: nn.Module) -> Weights:
    kept = []
    for weight in network.parameters():
        fixed = weight.detach()
        kept.append(fixed.clone())
    return tuple(kept)


def expert_loss(network: nn.Module, data: Images, epoch: int, config: Config) -> Tensor:
    """The clipped cross-entropy and the gradient penalty."""
    loss = functional.cross_entropy(network(data.images_NCHW), data.classes_N)
    if config.clip:
        loss = clipped(epoch) * loss
    if not config.penalty:
        return loss
    return loss + config.penalty * gradient_penalty(network, data.images_NCHW)


def clipped(epoch: int) -> float:
    """a_e: 0.5 to 0.95 in the first ten epochs, then 1."""
    return 0.5 + 0.05 * min(epoch, CLIPPED)


def gradient_penalty(network: nn.Module, images: Tensor) -> Tensor:
    """How far the lengths of the summed logits' gradients by an image are from 1, squared."""
    seen = images.detach().requires_grad_()
    total = network(seen).sum()
    slope, = torch.autograd.grad(total, seen, create_graph=True)
    flat = slope.flatten(1)
    length_N = flat.norm(dim=1)
    off_N = length_N - 1
    return off_N.square().mean()


def start_of(data: Images, shell: nn.Module, weights: Weights, config: Config,
             generator: torch.Generator) -> Tensor:
    """Places of the images that S starts from: real ones, or those nearest to the centres of their class."""
    if config.start == "real":
        return of_each(data, config.per_class, generator)
    with torch.no_grad():
        logits_NY = called(shell, weights, data.images_NCHW)
    kept = []
    for label in range(data.kinds):
        own = torch.nonzero(data.classes_N == label).flatten()
        near = central(logits_NY[own], config.per_class, generator)
        kept.append(own[near])
    return torch.cat(kept)


def central(rows_ND: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Places of the rows nearest to the centres of k-means, one for each centre, none twice: [count]."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    rows = rows_ND.double()
    with threadpool_limits(1):
        fitted = KMeans(count, n_init=1, random_state=seed).fit(rows.numpy())
    centres = torch.from_numpy(fitted.cluster_centers_)
    away_KN = torch.cdist(centres, rows)
    found = []
    for away_N in away_KN:
        nearest = int(away_N.argmin())
        found.append(nearest)
        away_KN[:, nearest] = torch.inf
    return torch.tensor(found)


def drawn_segment(ways: list[list[Weights]], config: Config, generator: torch.Generator) -> Segment:
    """A random expert's way from an early epoch on."""
    limits = torch.tensor([len(ways), config.latest])
    part = torch.rand(2, generator=generator)
    scaled = limits * part
    which, epoch = scaled.long().tolist()
    way = ways[which]
    begin = perturbed(way[epoch], config.perturb, generator)
    after = epoch + 1
    targets = way[after : after + config.ahead]
    return Segment(epoch, begin, tuple(targets))


def perturbed(weights: Weights, length: float, generator: torch.Generator) -> Weights:
    """Every matrix and stack of filters times 1 + d; vectors stay."""
    moved = []
    for weight in weights:
        if weight.ndim > 1:
            line = torch.randn(weight.shape, generator=generator)
            weight = weight + length * weight * line / line.norm()
        moved.append(weight)
    return tuple(moved)


def called(shell: nn.Module, weights: Weights, images: Tensor) -> Tensor:
    """Logits of the network with other weights."""
    names = [name for name, _ in shell.named_parameters()]
    named = dict(zip(names, weights))
    return torch.func.functional_call(shell, named, (images,))


def balanced(epoch: int, latest: int) -> float:
    """b_t: late starts, whose gradients are small, take longer steps."""
    half = latest // 2
    away = abs(epoch - half)
    factor = math.log(away + 8, 5)
    return factor if epoch >= half else 1 / factor


def matching_loss(shell: nn.Module, data: Images, lr: Tensor, segment: Segment, config: Config) -> Tensor:
    """How far the student ends from the expert, as a share of the expert's own way; summed over what is matched."""
    weights = tuple(weight.detach().requires_grad_() for weight in segment.begin)
    scale = balanced(segment.epoch, config.latest) if config.balance else 1.0
    moved: Weights = tuple(map(torch.zeros_like, weights))
    matched = reached_after(config)
    total = lr.new_zeros(())
    for step in range(1, config.steps + 1):
        logits = called(shell, weights, data.images_NCHW)
        loss = functional.cross_entropy(logits, data.classes_N)
        slopes = torch.autograd.grad(scale * loss, weights, create_graph=True)
        moved = tuple(config.momentum * old + slope for old, slope in zip(moved, slopes))
        weights = tuple(weight - lr * move for weight, move in zip(weights, moved))
        if step in matched:
            target = segment.targets[matched[step]]
            total = total + apart(weights, segment.begin, target)
    return total


def reached_after(config: Config) -> dict[int, int]:
    """Step -> which of the expert's epochs is matched after it."""
    every = config.steps // config.ahead
    found = {}
    if config.between:
        for epoch in range(config.ahead - 1):
            step = every * (epoch + 1)
            found[step] = epoch
    found[config.steps] = config.ahead - 1
    return found


def apart(weights: Weights, begin: Weights, target: Weights) -> Tensor:
    """||s - theta||^2 / ||s_0 - theta||^2."""
    off = _square(weights, target)
    way = _square(begin, target)
    return off / way


def _square(a: Weights, b: Weights) -> Tensor:
    squares = [(one - other).square().sum() for one, other in zip(a, b)]
    return torch.stack(squares).sum()


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two classes, one brighter than the other."""
    data = two_brightnesses(generator)
    build = functools.partial(small_network, norm=False)
    config = Config(per_class=2, experts=1, epochs=3, latest=2, rounds=2, steps=2)
    return {"data": data, "build": build, "config": config}
