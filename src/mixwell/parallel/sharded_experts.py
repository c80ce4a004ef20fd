"""Experts owned by one worker each and copied, for a step, to where their tokens are expected.

**Equation:** W workers with S slots for experts each. An expert has an owner, who keeps its parameters and moments.
    Before a step the load of the last ones predicts each expert's tokens; as long as a slot is free, the expert with
    the most tokens a copy gets one more, on the worker that expects the fewest tokens and has room. Owners send the
    copies their weights (a sparse all-gather). Tokens go to a copy on their own worker, else to the copy that has the
    fewest so far. Gradients of copies are summed at the owner (a sparse reduce-scatter), who takes the step.
**Shapes:** rows [N, D] sorted by expert and counts [E] on each worker; own weights [E / W, O, D].
**Reference:** He et al. 2025 (2502.02581), Hecate: fully sharded sparse data parallelism.
**Differs:** weights of copies are kept for the backward pass, where Hecate drops them and sends them again. Owners are
    neighbours in equal numbers. The greedy rule is stated from the paper's summary; workers count as one node.
**Fails when:** the load of a step is unlike that of the steps before it; the balance is then that of the copies.
**Cost:** O D elements for each copy, forward and backward, beside the tokens that have no copy on their own worker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.parallel.moves import exchange
from mixwell.parallel.wire import Wire, in_threads

Run = Callable[[Tensor, Tensor], Tensor]  # rows of one expert [n, D], its weights [O, D] -> [n, O]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of experts with copies."""

    workers: int = 2  # W, which divides the number of experts
    slots: int = 3  # S: experts that a worker holds in a step, its own among them

    def __post_init__(self) -> None:
        check_least(self, workers=1, slots=1)


def placed(load_E: Tensor, workers: int, slots: int) -> Tensor:
    """Where each expert stands for a step, bool [W, E], from the load that is expected.

    Raises `ValueError` for slots that do not hold a worker's own experts.
    """
    experts = len(load_E)
    own = experts // workers
    if own * workers != experts or own > slots:
        raise ValueError(f"{experts} experts over {workers} workers of {slots} slots; expected a number of workers "
                         "that divides them, and slots for a worker's own")
    there_WE = torch.eye(workers, dtype=torch.bool).repeat_interleave(own, dim=1)
    for _ in range(workers * (slots - own)):
        found = _next_copy(load_E.double(), there_WE, slots)
        if found is None:
            break
        there_WE[found] = True
    return there_WE


def _next_copy(load_E: Tensor, there_WE: Tensor, slots: int) -> tuple[int, int] | None:
    """(worker, expert) of the next copy: of the expert with the most tokens a copy that a worker has room for."""
    share_E = load_E / there_WE.sum(0)
    expected_W = (there_WE * share_E).sum(1)
    roomy_W = there_WE.sum(1) < slots
    for expert in share_E.argsort(descending=True, stable=True).tolist():
        open_W = roomy_W & ~there_WE[:, expert]
        if bool(open_W.any()):
            tokens_W = expected_W.masked_fill(~open_W, torch.inf)
            return int(tokens_W.argmin()), expert
    return None


def destinations(counts_WE: Tensor, there_WE: Tensor) -> Tensor:
    """The worker that computes each worker's tokens of each expert, int64 [W, E]."""
    workers, experts = counts_WE.shape
    goes_WE = torch.arange(workers).unsqueeze(1).repeat(1, experts)
    taken_W = (counts_WE * there_WE).sum(1)
    away_WE = counts_WE.masked_fill(there_WE, 0)
    for place in away_WE.flatten().argsort(descending=True, stable=True).tolist():
        worker, expert = divmod(place, experts)
        if there_WE[worker, expert]:
            continue
        tokens_W = taken_W.masked_fill(~there_WE[:, expert], torch.iinfo(torch.int64).max)
        chosen = int(tokens_W.argmin())
        goes_WE[worker, expert] = chosen
        taken_W[chosen] += counts_WE[worker, expert]
    return goes_WE


def gathered(own: Tensor, there_WE: Tensor, wire: Wire) -> Tensor:
    """Weights of the experts that this worker holds in the step, in order, from every owner's own [E / W, ...]."""
    first = wire.rank * len(own)
    mine_WL = there_WE[:, first : first + len(own)]
    leaving = [own[held] for held in mine_WL]
    sent = [len(part) for part in leaving]
    received = there_WE[wire.rank].view(wire.size, -1).sum(1).tolist()
    return exchange(torch.cat(leaving), wire, sent, received)


def sharded(rows_ND: Tensor, counts_E: Tensor, own: Tensor, there_WE: Tensor, wire: Wire, run: Run) -> Tensor:
    """Rows sorted by expert through experts that stand where `there_WE` says: [N, O]."""
    counts_WE = torch.stack(wire.gather(counts_E))
    goes_WE = destinations(counts_WE, there_WE)
    held = gathered(own, there_WE, wire)
    mine_E = goes_WE[wire.rank]
    order_N = mine_E.repeat_interleave(counts_E).argsort(stable=True)  # by worker, and by expert within one
    sent = _sizes(mine_E, counts_E, wire.size)
    coming_WE = counts_WE * (goes_WE == wire.rank)
    received = coming_WE.sum(1).tolist()
    came_MD = exchange(rows_ND[order_N], wire, sent, received)
    numbers = there_WE[wire.rank].nonzero().flatten().tolist()
    weights = dict(zip(numbers, held))
    done_MO = _through(came_MD, coming_WE, weights, run)
    back_NO = exchange(done_MO, wire, received, sent)
    return back_NO[order_N.argsort()]


def _sizes(goes_E: Tensor, counts_E: Tensor, workers: int) -> list[int]:
    total_W = torch.zeros(workers, dtype=torch.int64)
    return total_W.index_add(0, goes_E, counts_E).tolist()


def _through(rows_MD: Tensor, counts_WE: Tensor, weights: dict[int, Tensor], run: Run) -> Tensor:
    """Rows by worker and expert through the weights that stand here; what gets no row gives a gradient of zero."""
    experts = counts_WE.shape[1]
    counts = counts_WE.flatten().tolist()
    done = [run(rows_MD[:0], weight) for weight in weights.values()]
    for place, part in enumerate(rows_MD.split(counts)):
        if len(part):
            expert = place % experts
            done.append(run(part, weights[expert]))
    return torch.cat(done)


@method(
    title="Sharded experts with copies for a step",
    paper="Hecate: Unlocking Efficient Sparse Model Training via Fully Sharded Sparse Data Parallelism",
    year=2025,
)
def sharded_experts(rows_WND: Tensor, counts_WE: Tensor, expected_E: Tensor, weight_EOD: Tensor,
                    config: Config) -> Tensor:
    """Rows of each worker through linear experts, with the workers as threads: [W, N, O]."""
    there_WE = placed(expected_E, config.workers, config.slots)

    def run(rows: Tensor, weight: Tensor) -> Tensor:
        return rows @ weight.mT

    def work(wire: Wire) -> Tensor:
        rank = wire.rank
        own = weight_EOD.chunk(wire.size)[rank]
        return sharded(rows_WND[rank], counts_WE[rank], own, there_WE, wire, run)

    return torch.stack(in_threads(config.workers, work))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two workers with seven rows each over four experts, one of which is expected to get most."""
    rows = torch.randn(2, 7, 3, generator=generator)
    counts = torch.tensor([[1, 0, 5, 1], [1, 0, 4, 2]])
    expected = torch.tensor([2, 1, 8, 3])
    weight = torch.randn(4, 2, 3, generator=generator)
    return {"rows_WND": rows, "counts_WE": counts, "expected_E": expected, "weight_EOD": weight, "config": Config()}
