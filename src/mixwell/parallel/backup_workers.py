"""Gradients of the first k workers of n, k chosen anew each step for the most gain a second (dynamic backup workers).

**Equation:** a step of size eta on the mean of k gradients lowers the loss by at least, in expectation,
    G(k) = eta (1 - L eta / 2) |grad F|^2 - L eta^2 V / (2 k),
    and lasts T(k), until k gradients have come. k* = argmax G(k) / T(k). Over the last steps: V is the sample variance
    of the gradients that came, |grad F|^2 = max(|g|^2 - V / k, 0) of their mean g, L what the fall of the loss leaves:
    loss - loss' = eta |grad F|^2 - L eta^2 |g|^2 / 2; T(k) the mean of the k-th arrival, made to rise with k.
    Where no k promises a gain, or the loss rose over these steps, all are waited for.
**Shapes:** gradients [K, D] of the K workers that came; arrivals in seconds [K]; delays [R, W] of R steps, W workers.
**Reference:** Xu, Neglia and Sebastianelli 2020 (2004.14696), sections 3 and 4.
**Differs:** formulas as recalled. Workers that are not waited for stop and begin anew with the next step (the paper's
    interrupting variant), so that arrivals do not hang on the k before. What was never waited for is taken to come as
    late as the last that was, which lets k rise. Two are waited for at least: one has no variance.
**Fails when:** delays do not differ: all are then waited for; or one step size is wrong for few workers and for many.
**Cost:** sums over the gradients that came; a few numbers a step are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least

FEWEST = 2  # workers that are waited for
Batches = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # (weights, step) -> losses [W], gradients [W, D]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of dynamic backup workers."""

    step: float = 0.1  # eta, above 0
    memory: int = 5  # steps over which estimates are means
    waited: int | None = None  # k where it is fixed; default: chosen anew each step

    def __post_init__(self) -> None:
        check_above(self, step=0)
        check_least(self, memory=1, waited=1)


class Seen(NamedTuple):
    """What a step showed."""

    loss: float
    variance: float  # V
    square: float  # |grad F|^2
    mean_square: float  # |g|^2


def seen(losses_K: Tensor, grads_KD: Tensor) -> Seen:
    """What the gradients that came show."""
    count = len(grads_KD)
    mean_D = grads_KD.mean(0)
    gaps_KD = grads_KD - mean_D
    others = max(count - 1, 1)
    variance = float(gaps_KD.square().sum()) / others
    mean_square = float(mean_D.square().sum())
    noise = variance / count
    square = max(mean_square - noise, 0.0)
    loss = float(losses_K.mean())
    return Seen(loss, variance, square, mean_square)


def curvature(before: Seen, loss: float, step: float) -> float:
    """L from what the loss fell by after a step; noise may make it negative, and means over steps less so."""
    if not before.mean_square:
        return 0.0
    missed = step * before.square - (before.loss - loss)
    return 2 * missed / (step * step * before.mean_square)


def gains(square: float, variance: float, curve: float, step: float, workers: int) -> Tensor:
    """G(k) for k = 1 .. W [W]."""
    k_W = torch.arange(1, workers + 1, dtype=torch.float64)
    pull = step * (1 - curve * step / 2) * square
    noise = curve * step * step * variance / 2
    return pull - noise / k_W


def rising(values_W: Tensor) -> Tensor:
    """The nearest values, by squares, that never fall: neighbours that do share their mean [W]."""
    blocks: list[tuple[float, int]] = []
    for value in values_W.tolist():
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (first, size), (second, more) = blocks[-2:]
            both = size + more
            total = first * size + second * more
            blocks[-2:] = [(total / both, both)]
    means = [mean for mean, size in blocks for _ in range(size)]
    return torch.tensor(means, dtype=torch.float64)


@dataclass
class Chooser:
    """Chooses how many workers to wait for."""

    config: Config
    workers: int
    steps: deque[Seen] = field(init=False)
    curves: deque[float] = field(init=False)
    arrivals: list[deque[float]] = field(init=False)

    def __post_init__(self) -> None:
        kept = self.config.memory
        self.steps, self.curves = deque(maxlen=kept), deque(maxlen=kept)
        self.arrivals = [deque(maxlen=kept) for _ in range(self.workers)]

    def note(self, losses_K: Tensor, grads_KD: Tensor, arrivals_K: Tensor) -> None:
        """Take in a step: what the workers that came found, and when."""
        found = seen(losses_K, grads_KD)
        if self.steps:
            before = self.steps[-1]
            curve = curvature(before, found.loss, self.config.step)
            self.curves.append(curve)
        self.steps.append(found)
        for place, seconds in enumerate(arrivals_K.tolist()):
            self.arrivals[place].append(seconds)

    def next(self) -> int:
        """How many to wait for in the coming step."""
        if not self.curves or self.rising():
            return self.workers
        squares = [one.square for one in self.steps]
        variances = [one.variance for one in self.steps]
        curve = max(0.0, _mean(self.curves))
        gain_W = gains(_mean(squares), _mean(variances), curve, self.config.step, self.workers)
        rate_W = gain_W / self.durations()
        rate_W[: FEWEST - 1] = -torch.inf
        best = int(rate_W.argmax())
        promised = gain_W[best] > 0
        return best + 1 if promised else self.workers

    def rising(self) -> bool:
        """Whether the losses of the later half of the steps that are remembered are above those of the earlier."""
        losses = [one.loss for one in self.steps]
        half = len(losses) // 2
        return half > 0 and _mean(losses[-half:]) > _mean(losses[:half])

    def durations(self) -> Tensor:
        """T(k) for k = 1 .. W [W]."""
        latest = 0.0
        found = []
        for times in self.arrivals:
            latest = _mean(times) if times else latest
            found.append(latest)
        return rising(torch.tensor(found, dtype=torch.float64))


def _mean(values: Any) -> float:
    return sum(values) / len(values)


class Found(NamedTuple):
    """The weights after all steps; for each step the loss that the workers found, how many came, and when it ended."""

    weights_D: Tensor
    losses_R: Tensor
    waited_R: Tensor
    seconds_R: Tensor


def trained(weights_D: Tensor, batches: Batches, delays_RW: Tensor, config: Config) -> Found:
    """As many steps as there are rows of delays, of any model: `batches` gives losses and gradients of all workers."""
    workers = delays_RW.shape[1]
    chooser = Chooser(config, workers)
    losses, waited, lasts = [], [], []
    for number, delays_W in enumerate(delays_RW):
        k = config.waited or chooser.next()
        arrivals_W, order_W = delays_W.sort(stable=True)
        first_K = order_W[:k]
        losses_W, grads_WD = batches(weights_D, number)
        losses_K = losses_W[first_K]
        grads_KD = grads_WD[first_K]
        chooser.note(losses_K, grads_KD, arrivals_W[:k])
        step_D = config.step * grads_KD.mean(0)
        weights_D = weights_D - step_D
        losses.append(losses_K.mean())
        waited.append(k)
        lasts.append(arrivals_W[k - 1])
    losses_R = torch.stack(losses)
    seconds_R = torch.stack(lasts).double().cumsum(0)
    return Found(weights_D, losses_R, torch.tensor(waited), seconds_R)


@method(
    title="Backup workers, as many as pay",
    paper="Dynamic backup workers for parallel machine learning",
    year=2020,
)
def backup_workers(weights_D: Tensor, rows_RWBD: Tensor, targets_RWB: Tensor, delays_RW: Tensor,
                   config: Config) -> Found:
    """Least squares of each worker's batches [R, W, B], half the mean square of x' w - y, under delays in seconds.

    Raises `ValueError` for more workers to wait for than there are.
    """
    workers = delays_RW.shape[1]
    most = config.waited or FEWEST
    if most > workers:
        raise ValueError(f"{most} workers to wait for of {workers}; expected {workers} at most")

    def batches(point_D: Tensor, number: int) -> tuple[Tensor, Tensor]:
        rows_WBD = rows_RWBD[number]
        gaps_WB = rows_WBD @ point_D - targets_RWB[number]
        halves_WB = gaps_WB.square() / 2
        pulls_WBD = gaps_WB.unsqueeze(2) * rows_WBD
        return halves_WB.mean(1), pulls_WBD.mean(1)

    return trained(weights_D, batches, delays_RW, config)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight steps of four workers with three rows each in two dimensions."""
    rows = torch.randn(8, 4, 3, 2, generator=generator)
    targets = rows.sum(-1) + 0.1 * torch.randn(8, 4, 3, generator=generator)
    delays = -torch.rand(8, 4, generator=generator).log()
    return {"weights_D": torch.zeros(2), "rows_RWBD": rows, "targets_RWB": targets, "delays_RW": delays,
            "config": Config()}
