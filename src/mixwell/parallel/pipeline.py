"""A pipeline: each worker holds a part of the layers, and micro-batches follow each other through them.

**Equation:** K stages, M micro-batches. At tick t = 0 .. M + K - 2 stage j takes micro-batch t - j forward where there
    is one; backward the ticks run the other way. Gradients of the micro-batches add up, then there is one step. Of the
    M + K - 1 ticks each way a stage is idle in K - 1: a share of (K - 1) / (M + K - 1).
    With recomputation a stage keeps the input of each micro-batch and computes its inside again when the gradient
    comes, for all but the last, whose gradient comes next.
**Shapes:** rows [B, D] in and out of every stage, cut in M parts; the last stage gives a loss.
**Reference:** Huang et al. 2019 (1811.06965), sections 2.2 and 2.3; torchgpipe (Kim et al. 2020) for which micro-batch
    keeps its inside.
**Differs:** all stages take and give rows of one width. The last stage, whose result goes nowhere, computes when the
    gradients begin. No batch normalisation, whose statistics would be a micro-batch's.
**Fails when:** one stage takes longer than the others, which then wait for it at every tick; a stage draws at random,
    so that it gives another result when it is computed again.
**Cost:** 2 B D elements sent by each stage but the ends; kept: B D of inputs and the inside of one micro-batch, where a
    pipeline that recomputes nothing keeps the inside of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.parallel.wire import Wire, in_threads

Stage = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the pipeline."""

    micro_batches: int = 4  # M
    recompute: bool = True  # keep a micro-batch's input alone, and compute its inside again

    def __post_init__(self) -> None:
        check_least(self, micro_batches=1)


class Task(NamedTuple):
    """What a stage does at a tick."""

    micro_batch: int
    stage: int


def schedule(stages: int, micro_batches: int) -> Iterator[list[Task]]:
    """The tasks of each tick of the forward pass; the backward pass runs them in the opposite order."""
    for tick in range(micro_batches + stages - 1):
        first = max(0, tick - micro_batches + 1)
        end = min(tick + 1, stages)
        yield [Task(tick - stage, stage) for stage in range(first, end)]


def idle_share(stages: int, micro_batches: int) -> float:
    """Share of the time that a stage waits, where all stages take equally long."""
    return (stages - 1) / (micro_batches + stages - 1)


def step_seconds(stage_s: Sequence[float], micro_batches: int) -> float:
    """Time of one pass of all micro-batches, stages taking `stage_s` for each: a stage waits for the one before it."""
    stages = len(stage_s)
    free = [0.0] * stages  # when each stage is done with what it had so far
    for _ in range(micro_batches):
        arrived = 0.0
        for stage, seconds in enumerate(stage_s):
            begun = max(free[stage], arrived)
            free[stage] = arrived = begun + seconds
    return free[-1]


class _Kept(NamedTuple):
    """What a stage keeps of a micro-batch until its gradient comes."""

    entered: Tensor
    left: Tensor | None  # None where it is computed again


class Pipe:
    """One worker's stage of the pipeline."""

    def __init__(self, stage: Stage, wire: Wire, config: Config) -> None:
        self.stage, self.wire, self.config = stage, wire, config
        self.kept: dict[int, _Kept] = {}

    def loss(self, rows_BD: Tensor, loss: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Forward and backward; gradients are added to the stage's parameters.

        rows_BD: the first stage's input; the others need its shape alone. loss: (rows, micro-batch) -> its share of the
        loss, used by the last stage. Returns the sum of the shares there, 0 elsewhere. A batch of fewer rows than
        micro-batches raises `ValueError`.
        """
        count = self.config.micro_batches
        if len(rows_BD) < count:
            raise ValueError(f"{len(rows_BD)} rows in {count} micro-batches; expected one row for each at least")
        parts = rows_BD.tensor_split(count)
        self._forward(parts)
        return self._backward(parts, loss)

    def _forward(self, parts: Sequence[Tensor]) -> None:
        """Every micro-batch through the stage."""
        came: Tensor | None = None
        last = len(parts) - 1
        for tasks in schedule(self.wire.size, len(parts)):
            number = self._own(tasks)
            given = parts[0][:0]
            if number is not None:
                entered = parts[number] if self.wire.rank == 0 else came
                assert entered is not None
                again = self.config.recompute and number < last
                given = self._through(number, entered.detach(), again)
            came = self._passed(given.detach(), tasks, parts, forward=True)

    def _through(self, number: int, entered: Tensor, again: bool) -> Tensor:
        """A micro-batch through the stage; what its gradient needs is kept, its inside where not computed `again`."""
        entered.requires_grad_(self.wire.rank > 0)
        if again and self._last:
            self.kept[number] = _Kept(entered, None)
            return entered[:0]
        with torch.set_grad_enabled(not again):
            left = self.stage(entered)
        self.kept[number] = _Kept(entered, None if again else left)
        return left

    def _backward(self, parts: Sequence[Tensor], loss: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Gradients from the last stage to the first, micro-batches in the opposite order; the last stage's loss."""
        came: Tensor | None = None
        total = parts[0].new_zeros(())
        ticks = list(schedule(self.wire.size, len(parts)))
        for tasks in reversed(ticks):
            number = self._own(tasks)
            given = parts[0][:0]
            if number is not None:
                entered, left = self.kept.pop(number)
                if left is None:
                    left = self.stage(entered)
                if self._last:
                    left = loss(left, number)
                    total += left.detach()
                left.backward(came)
                given = parts[0][:0] if entered.grad is None else entered.grad
            came = self._passed(given, tasks, parts, forward=False)
            if self._last:
                came = None
        return total

    @property
    def _last(self) -> bool:
        return self.wire.rank == self.wire.size - 1

    def _own(self, tasks: Sequence[Task]) -> int | None:
        """The micro-batch that is this stage's turn; None where it waits."""
        by_stage = {stage: number for number, stage in tasks}
        return by_stage.get(self.wire.rank)

    def _passed(self, given: Tensor, tasks: Sequence[Task], parts: Sequence[Tensor], forward: bool) -> Tensor:
        """Rows to the next stage (backward: to the one before), and those that come from the other side."""
        size, rank = self.wire.size, self.wire.rank
        sent = [0] * size
        received = [0] * size
        onward = 1 if forward else -1
        for number, stage in tasks:
            target = stage + onward
            if not 0 <= target < size:
                continue
            count = len(parts[number])
            if stage == rank:
                sent[target] = count
            if target == rank:
                received[stage] = count
        leaving = given[: sum(sent)]
        return self.wire.exchange(leaving, sent, received)


class Step(NamedTuple):
    """What a pass of all micro-batches gives."""

    loss: Tensor
    grads_KDD: Tensor


@method(
    title="Pipeline of micro-batches",
    paper="GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism",
    year=2019,
)
def pipeline(rows_BD: Tensor, weights_KDD: Tensor, config: Config) -> Step:
    """Loss and gradients of K stages tanh(W x) as threads, the loss being half the squares' mean over rows."""

    def work(wire: Wire) -> tuple[Tensor, Tensor]:
        weight = weights_KDD[wire.rank].clone().requires_grad_()

        def stage(rows: Tensor) -> Tensor:
            return (rows @ weight.mT).tanh()

        def share(rows: Tensor, number: int) -> Tensor:
            return rows.square().sum() / twice

        loss = Pipe(stage, wire, config).loss(rows_BD, share)
        assert weight.grad is not None
        return loss, weight.grad

    twice = 2 * len(rows_BD)
    found = in_threads(len(weights_KDD), work)
    losses, grads = zip(*found)
    return Step(losses[-1], torch.stack(grads))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Seven rows through three stages."""
    rows_BD = torch.randn(7, 4, generator=generator)
    weights_KDD = torch.randn(3, 4, 4, generator=generator)
    return {"rows_BD": rows_BD, "weights_KDD": weights_KDD, "config": Config()}
