"""CHITA: which weights stay and what they become, chosen together by a quadratic model of the loss without its Hessian.

**Equation:** G holds gradients of the loss at w0 over windows of text, y = G w0. min Q(w) = 1/2 ||y - G w||^2 +
    l ||w - w0||^2 + a^T w over ||w||_0 <= k, 2 l = ridge mean_p sum_n G_np^2, a the sums of G's columns (or 0). Steps
    w' = top_k(w - t dQ), t doubled from where the support first changes, the new support solved exactly by N
    equations; inside an active set of 3/2 k weights, to which come those that steps outside pick. In stages k falls,
    and G and w0 are those of the model pruned so far.
**Shapes:** G [N, P], w [P]: all chosen weights of the model side by side.
**Reference:** Benbaki et al. 2023 (2302.14623), algorithms 1 to 3 and the authors' code.
**Differs:** one row of G a window of text, whose gradient is a mean over tokens. No blocks of layers: the whole model
    at once. The ridge is a share of the mean curvature. Every support is solved, where they do it at last; it begins
    with the largest weights or those of largest w^2 Q'', whichever is better. What was pruned may return.
**Fails when:** windows are few beside the weights that stay: those then make good whatever goes, and magnitude alone
    decides (thousands of rows for a million weights). An expert that no window meets loses its weights first, and a
    mixture with an expert of zeros is refused. Past some 90 %, where a quadratic says little.
**Cost:** N gradients a stage, O(N P) a step, 16 N P bytes; P^2 never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mixwell.core import machine
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision._parts import chosen, quantised_example
from mixwell.precision._statistics import calibrated

WIDER = 1.5  # the active set over k
STEEPER = 1.05  # margin on the largest curvature
DOUBLINGS, OUTSIDE = 6, 10  # steps tried beyond the first change of support, and to look outside the active set
ENOUGH = 1e-3  # share of Q by which a step has to lower it to be followed by another
STEPS, SETS = 30, 10  # at most, inside one active set, and of active sets
FIRST = 0.1  # sparsity of the first of several stages
CUBIC = 3

Schedule = Literal["exponential", "polynomial", "linear"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of CHITA."""

    share: float = 0.5  # of the weights of attention and feed-forward blocks that go, above 0 and below 1
    ridge: float = 10.0  # what holds weights near their start, as a share of the mean curvature, above 0
    stages: int = 1  # in which sparsity rises from a tenth, with gradients taken anew, at least 1
    schedule: Schedule = "exponential"  # of the share that stays; polynomial: the cubic one
    first_order: bool = False  # with the gradient's mean, which is zero at a minimum and noise where windows are few
    rows: int = 1  # windows of text whose mean gradient is one row of G, at least 1
    tokens: int = 16_384  # of calibration text

    def __post_init__(self) -> None:
        check_least(self, stages=1, rows=1, tokens=1)
        check_above(self, share=0, ridge=0)
        if not self.share < 1:
            raise ValueError(f"share is {self.share}; expected above 0 and below 1")


def needs(config: Config) -> Needs:
    """Text, for gradients."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """Nothing: what goes is missed."""
    return {}


class Problem(NamedTuple):
    """The quadratic around `start` [P]: gradients [N, P], the ridge l and the linear part [P]."""

    gradients: Tensor
    start: Tensor
    ridge: float
    linear: Tensor

    def residual(self, w: Tensor) -> Tensor:
        """y - G w [N]."""
        return self.gradients @ (self.start - w)

    def value(self, w: Tensor) -> float:
        """Q(w)."""
        missed = self.residual(w)
        moved = w - self.start
        curved = missed.dot(missed) / 2
        held = self.ridge * moved.dot(moved)
        total = curved + held
        total += self.linear.dot(w)
        return float(total)

    def slope(self, w: Tensor) -> Tensor:
        """dQ/dw [P]."""
        fit = self.residual(w) @ self.gradients
        pull = 2 * self.ridge * (w - self.start)
        return pull + self.linear - fit

    def diagonal(self) -> Tensor:
        """Half of Q's second derivatives by each weight [P]."""
        squares = self.gradients.square().sum(0)
        return squares / 2 + self.ridge

    def curvature(self) -> float:
        """A bound on the largest eigenvalue of Q's Hessian."""
        small = self.gradients @ self.gradients.T
        largest = torch.linalg.eigvalsh(small)[-1]
        return STEEPER * float(largest + 2 * self.ridge)


def top_k(w: Tensor, k: int) -> Tensor:
    """The vector with its k largest magnitudes alone."""
    kept = w.abs().topk(k).indices
    found = torch.zeros_like(w)
    found[kept] = w[kept]
    return found


def first_change(w: Tensor, slope: Tensor, support: Tensor) -> float:
    """The smallest step at which a weight outside the support could take the place of one inside."""
    outside = slope.masked_fill(support, 0).abs().amax()
    inside, size = slope[support], w[support].abs()
    closing = outside + inside * w[support].sign()
    change = torch.where(closing > 0, size / closing, torch.inf)
    return float(change.amin()) if len(change) else 0.0


def improved(problem: Problem, w: Tensor, k: int, active: Tensor) -> Tensor:
    """A vector of k weights inside `active` [P] with a lower Q, or `w` itself, which is the best on its support."""
    slope = problem.slope(w) * active
    step = first_change(w, slope, w != 0)
    found = [w]
    for _ in range(DOUBLINGS):
        step *= 2
        trial = top_k(w - step * slope, k)
        found.append(solved(problem, trial != 0))
    return _lower(problem, found)


def _lower(problem: Problem, ways: Sequence[Tensor]) -> Tensor:
    """The first of the least Q."""
    return min(ways, key=problem.value)


def thresholded(problem: Problem, w: Tensor, k: int, active: Tensor) -> Tensor:
    """Steps of `improved` until they no longer pay."""
    value = problem.value(w)
    for _ in range(STEPS):
        w = improved(problem, w, k, active)
        before, value = value, problem.value(w)
        if before - value <= ENOUGH * abs(before):
            break
    return w


def newcomers(problem: Problem, w: Tensor, k: int, active: Tensor, curvature: float) -> Tensor | None:
    """A better vector of k weights some of which stand outside `active`; None where no step finds one."""
    slope, value = problem.slope(w), problem.value(w)
    step = 1 / (2 * curvature)
    for _ in range(OUTSIDE):
        stepped = top_k(w - step * slope, k) != 0
        trial = solved(problem, stepped)
        outside = stepped & ~active
        if bool(outside.any()) and problem.value(trial) < value:
            return trial
        step *= 2
    return None


def solved(problem: Problem, support: Tensor) -> Tensor:
    """The vector on this support [P] of least Q, by a system of N equations."""
    G = problem.gradients[:, support]
    level = 2 * problem.ridge
    held = problem.start[support]
    everything = problem.gradients @ problem.start
    missing = everything - G @ held
    wanted = missing @ G - problem.linear[support]
    small = G @ G.T
    small.diagonal().add_(level)
    inner = torch.linalg.solve(small, G @ wanted)
    moved = (wanted - inner @ G) / level
    found = torch.zeros_like(problem.start)
    found[support] = held + moved
    return found


def sparse(problem: Problem, k: int) -> Tensor:
    """A vector of at most k weights with a low Q, [P]."""
    w = _begun(problem, k)
    curvature = problem.curvature()
    wider = min(len(w), int(WIDER * k))
    stepped = w - problem.slope(w) / curvature
    active = (top_k(stepped, wider) != 0) | (w != 0)
    for _ in range(SETS):
        w = thresholded(problem, w, k, active)
        found = newcomers(problem, w, k, active, curvature)
        if found is None:
            break
        w, active = found, active | (found != 0)
    return w


def _begun(problem: Problem, k: int) -> Tensor:
    """The better of the largest weights and of those whose loss alone would raise Q most."""
    alone = problem.start * problem.diagonal().sqrt()
    choices = [top_k(score, k) != 0 for score in (problem.start, alone)]
    return _lower(problem, [solved(problem, choice) for choice in choices])


def sparsities(config: Config) -> list[float]:
    """The share that is gone after each stage."""
    last = config.share
    first = min(FIRST, last)
    found = []
    for stage in range(1, config.stages):
        x = (stage - 1) / (config.stages - 1)
        found.append(_between(first, last, x, config.schedule))
    return [*found, last]


def _between(first: float, last: float, x: float, schedule: Schedule) -> float:
    y = 1 - x
    if schedule == "linear":
        return y * first + x * last
    if schedule == "polynomial":
        return last - (last - first) * y**CUBIC
    at_first = (1 - first) ** y
    at_last = (1 - last) ** x
    return 1 - at_first * at_last


def flattened(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """These tensors side by side, float64 [P]."""
    parts = [tensors[name].double().flatten() for name in names]
    return torch.cat(parts)


def gradients(checkpoint: Checkpoint, names: Sequence[str], calibration: Inputs, rows: int) -> Tensor:
    """G [N, P] at the checkpoint's weights; raises `MixwellError` where the machine has no memory for it."""
    count = sum(checkpoint.tensors[name].numel() for name in names)
    windows = sum(len(batch) for batch in calibration.batches)
    height = -(-windows // rows)
    needed = 2 * 8 * count * height  # once row by row, once together
    there = machine.memory_bytes()
    if needed > there:
        raise MixwellError(f"{windows} gradients of {count} weights take {needed / 2**30:,.1f} GiB; this machine has "
                           f"{there / 2**30:,.1f} GiB. Take fewer tokens, or more rows a gradient.")
    at = {name: checkpoint.tensors[name] for name in names}
    found = [flattened(slopes, names) for slopes in calibration.slopes(checkpoint, at, rows=rows)]
    return torch.stack(found)


def quadratic(G: Tensor, start: Tensor, config: Config) -> Problem:
    """The quadratic of gradients [N, P] at `start` [P]."""
    bends = G.square().sum(0)
    ridge = config.ridge * float(bends.mean()) / 2
    linear = G.sum(0) if config.first_order else torch.zeros_like(start)
    return Problem(G, start, ridge, linear)


def placed(checkpoint: Checkpoint, names: Sequence[str], w: Tensor) -> Checkpoint:
    """The checkpoint with these weights from `w` [P], in their own types."""
    tensors = dict(checkpoint.tensors)
    begin = 0
    for name in names:
        own = tensors[name]
        end = begin + own.numel()
        part = w[begin:end].view(own.shape)
        tensors[name] = part.to(own.dtype)
        begin = end
    return checkpoint.derive(tensors=tensors)


@method(title="CHITA: pruning by a quadratic model without its Hessian",
        paper="Fast as CHITA: Neural Network Pruning with Combinatorial Optimization", year=2023, tags={"zeros"})
def chita(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint of whose weights a share is zero, the others moved to make up. Draws nothing from `generator`.

    Raises `MixwellError` where weights are quantised, none is there, or the gradients are more than the memory.
    """
    names = chosen(checkpoint, False)
    now = checkpoint
    for gone in sparsities(config):
        start = flattened(now.tensors, names)
        G = gradients(now, names, calibration, config.rows)
        problem = quadratic(G, start, config)
        left = len(start) - round(gone * len(start))
        w = sparse(problem, max(1, left))
        now = placed(now, names, w)
    record = calibrated(checkpoint, calibration)
    record["account"]["used"] = names
    return checkpoint.derive(tensors=now.tensors, record=record)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture, of which half of the weights go in two stages."""
    config = Config(stages=2, tokens=72)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
