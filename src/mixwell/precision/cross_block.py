"""CBQ: rounding learned for some layers at a time, in windows that overlap: errors of one layer make up for another's.

**Equation:** W' = S clamp(floor(W / S) + h(V), -L, L), V = V_0 + A_1 A_2, h(V_0) = W / S - floor(W / S); first A_2 = 0.
    For each window of layers minimise over S, A_1, A_2: |y' - y|^2 / |y|^2 + mean KL(softmax y || softmax y') +
    lambda mean (1 - |2 h - 1|^beta), y the stream that the window gives in the model with full weights, y' what it
    gives behind the layers rounded before. Before: |w| above a bound is cut to it, the bound such that among the
    magnitudes above Q3 + 1.5 (Q3 - Q1) (gap to those cut)^2 - mu var(those kept) is largest.
**Shapes:** W [..., O, I], S [..., O, I / G], A_1 [..., O, r], A_2 [..., r, I]; y [T, D].
**Reference:** Ding et al. 2023 (2312.07950), sections 3.2 to 3.4.
**Differs:** weights alone: inputs are neither rounded nor scaled. V_0, which stays, makes the start a rounding to
    nearest, which no product of low rank could. The error of the stream is a share of its square, lambda one of what
    the rest is at first. What drives h to an end waits and then sharpens as in precision.learned_rounding.
**Fails when:** a layer hands its router's state on. An expert learns from the tokens that the router sends it; one
    without any is rounded to nearest.
**Cost:** windows x steps passes of four rows through so many layers, forth and back; (O + I) r numbers to learn for
    each matrix, and O I / G; bits as precision.integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision._parts import (
    Coded,
    check_bits,
    chosen,
    grid_of,
    grouped,
    named,
    positive,
    row_bits,
    top,
    whole_example,
    with_codes,
)
from mixwell.precision._rounding import beta_at, share_up, start, undecided
from mixwell.precision._statistics import calibrated

EDGE = 1e-3  # of the fraction of a step at the start, so that every V_0 is finite


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of CBQ."""

    bits: int = 4  # 2 to 8
    group_size: int = 64  # numbers of a row that share a scale; 0: the whole row
    window: int = 2  # layers that are learned together
    overlap: int = 1  # of them, those that the next window learns on, below window
    rank: int = 5  # r
    steps: int = 200  # of Adam on each window
    lr: float = 0.01  # of A_1 and A_2, above 0
    scale_lr: float = 1e-3  # of log S, at least 0
    weight: float = 0.1  # lambda as a share of what the rest is at first, at least 0
    warm_up: float = 0.2  # share of the steps without the term of lambda, 0 to below 1
    spread: float = 1.0  # mu, at least 0; how much the spread of what is kept counts
    truncate: bool = True  # whether outliers are cut
    tokens: int = 16_384  # of calibration text
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_bits(self)
        check_least(self, tokens=1, window=1, overlap=0, rank=1, steps=1, scale_lr=0, weight=0, spread=0)
        check_above(self, max_kl_nats=0, lr=0)
        if self.overlap >= self.window:
            raise ValueError(f"overlap is {self.overlap}; expected less than window = {self.window}")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up is {self.warm_up}; expected 0 to below 1")


def needs(config: Config) -> Needs:
    """Text, for what layers give."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def bound(weight: Tensor, spread: float) -> float:
    """The largest magnitude that is kept of a weight."""
    sizes = weight.double().abs().flatten()
    ordered, _ = sizes.sort()
    last = len(ordered) - 1
    lower, upper = ordered[last // 4], ordered[3 * last // 4]
    coarse = upper + 1.5 * (upper - lower)
    first = int((ordered <= coarse).sum())
    outside = ordered[first:]
    if len(outside) < 2:
        return float(ordered[-1])
    kept, cut = outside[:-1], outside[1:]
    counts = torch.arange(1, len(outside), dtype=torch.float64, device=weight.device)
    means = kept.cumsum(0) / counts
    variances = kept.square().cumsum(0) / counts - means.square()
    worth = (cut - kept).square() - spread * variances
    best = int(worth.argmax())
    return float(kept[best])


def truncated(weight: Tensor, spread: float) -> Tensor:
    """The weight with what is above its bound cut to it; each expert of a stack by itself."""
    if weight.ndim == 3:
        return torch.stack([truncated(own, spread) for own in weight])
    most = bound(weight, spread)
    return weight.clamp(-most, most)


@dataclass(frozen=True, eq=False)
class Learned:
    """A weight in groups [..., O, C, G] whose rounding is learned."""

    groups: Tensor
    fixed: Tensor  # V_0 [..., O, I]
    scale: Tensor  # S at first [..., O, C]
    stretch: Tensor  # log of S over its start [..., O, C], learned
    tall: Tensor  # A_1 [..., O, r]
    wide: Tensor  # A_2 [..., r, I]
    bits: int

    def up(self) -> Tensor:
        """h [..., O, C, G]."""
        V = self.fixed + self.tall @ self.wide
        return share_up(V).view_as(self.groups)

    def step(self) -> Tensor:
        """S [..., O, C, 1]."""
        return (self.scale * self.stretch.exp()).unsqueeze(-1)

    def numbers(self, up: Tensor) -> Tensor:
        """Steps of the grid [..., O, C, G]; a gradient reaches `up` alone."""
        most = top(self.bits)
        steps = self.groups / self.step().detach()
        return (steps.floor() + up).clamp(-most, most)

    def weight(self, up: Tensor) -> Tensor:
        """W' [..., O, I]."""
        whole = self.step() * self.numbers(up)
        return whole.flatten(-2)

    def final(self) -> Tensor:
        """W' with every weight up or not."""
        return self.weight(self._decided())

    def coded(self) -> Coded:
        """The codes of `final`."""
        numbers = self.numbers(self._decided()).flatten(-2)
        codes = numbers + top(self.bits) + 1
        step = self.step().squeeze(-1)
        scale = positive(step.to(torch.bfloat16))
        bits = row_bits(codes, self.bits)
        return Coded(codes=codes.to(torch.uint8), bits=bits, scale=scale)

    def _decided(self) -> Tensor:
        """h, all the way up or not."""
        up = self.up() >= 0.5
        return up.to(self.groups.dtype)


def opened(weight: Tensor, config: Config, generator: torch.Generator) -> Learned:
    """The weight as it is rounded at first: to nearest."""
    whole = weight.float()
    kept = truncated(whole, config.spread) if config.truncate else whole
    groups = grouped(kept, config.group_size)
    grid = grid_of(groups, config.bits, True)
    scale = grid.real
    shares = groups / scale.unsqueeze(-1)
    fraction = (shares - shares.floor()).clamp(EDGE, 1 - EDGE)
    fixed = start(fraction).flatten(-2)
    *lead, width = weight.shape
    drawn = torch.randn(*lead, config.rank, generator=generator) / config.rank**0.5
    tall = drawn.to(weight.device).requires_grad_()
    wide = torch.zeros(*lead[:-1], config.rank, width, device=weight.device, requires_grad=True)
    stretch = torch.zeros_like(scale, requires_grad=True)
    return Learned(groups, fixed, scale, stretch, tall, wide, config.bits)


def windows(count: int, config: Config) -> Iterator[range]:
    """The layers of each window; the last one ends at the last layer."""
    stride = config.window - config.overlap
    first = 0
    while True:
        last = min(first + config.window, count)
        yield range(first, last)
        if last == count:
            return
        first += stride


def distance(y: Tensor, aim: Tensor) -> Tensor:
    """Squared error as a share of the aim's square, and the mean KL of channels read as logits."""
    change = y - aim
    error = change.square().sum() / aim.square().sum()
    own, wanted = F.log_softmax(y, -1), F.log_softmax(aim, -1)
    terms = F.kl_div(own, wanted, reduction="none", log_target=True)
    rows = terms.sum(-1)
    return error + rows.mean()


@dataclass(frozen=True, eq=False)
class Streams:
    """What comes into the next window, batch by batch: of full weights and of rounded ones."""

    checkpoint: Checkpoint
    calibration: Inputs
    whole: Sequence[Tensor | None]
    rounded: Sequence[Tensor | None]

    def through(self, batch: int, x: Tensor | None, layers: range, moving: Mapping[str, Tensor]) -> Tensor:
        """What one batch is behind these layers."""
        tokens = self.calibration.batches[batch]
        return self.calibration.through(self.checkpoint, tokens, x, layers, moving)

    @torch.no_grad()
    def aims(self, layers: range) -> list[Tensor]:
        """What full weights give behind the layers, of each batch."""
        return self._behind(self.whole, layers, {})

    @torch.no_grad()
    def moved(self, layers: range, final: Mapping[str, Tensor]) -> Streams:
        """Both streams behind these layers."""
        rounded = self._behind(self.rounded, layers, final)
        return replace(self, whole=self.aims(layers), rounded=rounded)

    def _behind(self, given: Sequence[Tensor | None], layers: range, moving: Mapping[str, Tensor]) -> list[Tensor]:
        found = []
        for batch, x in enumerate(given):
            y = self.through(batch, x, layers, moving)
            found.append(y)
        return found


def inside(names: Mapping[str, Learned], layers: range) -> dict[str, Learned]:
    """The weights of some layers."""
    found: dict[str, Learned] = {}
    for layer in layers:
        start_ = f"layers.{layer}."
        found |= {name: learned for name, learned in names.items() if name.startswith(start_)}
    return found


def learn(own: Mapping[str, Learned], streams: Streams, layers: range, config: Config) -> None:
    """Descend on what the weights of a window learn, in place."""
    factors = [factor for learned in own.values() for factor in (learned.tall, learned.wide)]
    scales = [learned.stretch for learned in own.values()]
    rates = [{"params": factors, "lr": config.lr}, {"params": scales, "lr": config.scale_lr}]
    optimiser = torch.optim.Adam(rates)
    aims = streams.aims(layers)
    count = sum(learned.groups.numel() for learned in own.values())
    unit = None
    for step in range(config.steps):
        batch = step % len(aims)
        ups = {name: learned.up() for name, learned in own.items()}
        moving = {name: learned.weight(ups[name]) for name, learned in own.items()}
        y = streams.through(batch, streams.rounded[batch], layers, moving)
        loss = distance(y, aims[batch])
        unit = loss.detach() if unit is None else unit
        beta = beta_at(step, config.steps, config.warm_up)
        if beta is not None:
            open_ = sum(undecided(up, beta) for up in ups.values())
            loss = loss + config.weight * unit * (open_ / count)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def learn_all(checkpoint: Checkpoint, weights: Mapping[str, Learned], config: Config, calibration: Inputs) -> None:
    """Every window in turn, each behind what was rounded before."""
    nothing: list[Tensor | None] = [None] * len(calibration.batches)
    streams = Streams(checkpoint, calibration, nothing, nothing)
    count = int(checkpoint.arch["num_layers"])
    reached = 0
    for layers in windows(count, config):
        done = range(reached, layers.start)
        behind = inside(weights, done)
        if behind:
            final = {name: learned.final() for name, learned in behind.items()}
            streams = streams.moved(done, final)
        reached = layers.start
        own = inside(weights, layers)
        learn(own, streams, layers, config)


@method(title="CBQ: rounding learned in windows of layers that overlap",
        paper="CBQ: Cross-Block Quantization for Large Language Models", year=2023, tags={"codes", "calibrated"})
def cross_block(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose large weights are packed integers learned in windows. `generator` draws A_1.

    Raises `MixwellError` as `precision.integers`, and where a layer hands its router's state on.
    """
    weights = {}
    for name in chosen(checkpoint, False):
        weight = checkpoint.tensors[name]
        weights[name] = named(name, opened, weight, config, generator)
    with torch.enable_grad():
        learn_all(checkpoint, weights, config, calibration)
    with torch.no_grad():
        made = {name: learned.coded() for name, learned in weights.items()}
    record = calibrated(checkpoint, calibration)
    return with_codes(checkpoint, made, record)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of one layer with attention and a mixture."""
    config = Config(group_size=8, tokens=72, steps=2)
    return {"checkpoint": whole_example(generator), "config": config, "generator": generator}
