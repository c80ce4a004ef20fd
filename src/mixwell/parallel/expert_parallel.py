"""Experts spread over workers: counts are exchanged, then tokens, and back.

**Equation:** worker r of n holds the experts r E / n to (r + 1) E / n. Rows sorted by expert, c[w, e] of worker w for
    expert e: the counts travel first, then the rows; each worker sorts what came by expert, runs its experts and sends
    every row back where it came from. y = sum_k w_k E_k(x), as on one worker.
**Shapes:** rows [N, D] and counts [E] on each worker; [M, D] rows come to its [E / n] experts.
**Reference:** He et al. 2021 (2103.13262), section 4, and the released FastMoE.
**Differs:** the loss is shared out by tokens and gradients are summed, so that those of experts need no division by the
    number of workers. A worker to which no row comes takes part with none and gives gradients of zero.
**Fails when:** one expert gets most of the rows: its worker computes while the others wait, and nothing is dropped.
**Cost:** 4 (n - 1) / n N D elements sent forward and backward, beside (n - 1) / n E counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.parallel.moves import there_and_back
from mixwell.parallel.wire import Wire, in_threads

Experts = Callable[[Tensor, Tensor], Tensor]  # rows sorted by expert [M, D], their counts [E / n] -> [M, D]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the exchange."""

    workers: int = 2  # n, which divides the number of experts

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; expected at least 1")


def spread(rows_ND: Tensor, counts_E: Tensor, wire: Wire, experts: Experts) -> Tensor:
    """Rows [N, D] sorted by expert through experts that are spread over the workers of `wire`: [N, D]."""

    def by_expert(came_MD: Tensor, in_WL: Tensor) -> Tensor:
        by_expert_M = _by_expert(in_WL)
        sorted_MD = came_MD.index_select(0, by_expert_M)
        done_MD = experts(sorted_MD, in_WL.sum(0))
        back_M = torch.argsort(by_expert_M)
        return done_MD.index_select(0, back_M)

    return there_and_back(rows_ND, counts_E, wire, by_expert)


def _by_expert(in_WL: Tensor) -> Tensor:
    """The places of rows that came sorted by worker and, within that, by expert: those of the first expert first."""
    experts_L = torch.arange(in_WL.shape[1], device=in_WL.device)
    labels_WL = experts_L.expand_as(in_WL)
    labels_M = labels_WL.flatten().repeat_interleave(in_WL.flatten())
    return torch.argsort(labels_M, stable=True)


def own_experts(stacked: Tensor, wire: Wire) -> Tensor:
    """The experts [E / n, ...] of this worker; a number of experts that the workers do not divide raises."""
    count, size = len(stacked), wire.size
    if count % size:
        raise ValueError(f"{count} experts over {size} workers; expected a number of workers that divides them")
    parts = stacked.chunk(size)
    return parts[wire.rank]


@method(
    title="Expert parallelism",
    paper="FastMoE: A Fast Mixture-of-Expert Training System",
    year=2021,
)
def expert_parallel(rows_WND: Tensor, counts_WE: Tensor, weight_EDD: Tensor, config: Config) -> Tensor:
    """Rows of each worker through linear experts, with the workers as threads: [W, N, D]."""
    if len(rows_WND) != config.workers:
        raise ValueError(f"rows of {len(rows_WND)} workers; expected {config.workers}, as in the config")

    def work(wire: Wire) -> Tensor:
        own_LDD = own_experts(weight_EDD, wire)

        def experts(rows_MD: Tensor, counts_L: Tensor) -> Tensor:
            parts = rows_MD.split(counts_L.tolist())
            return torch.cat([part @ weight.mT for part, weight in zip(parts, own_LDD)])

        return spread(rows_WND[wire.rank], counts_WE[wire.rank], wire, experts)

    return torch.stack(in_threads(config.workers, work))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two workers with six rows each over four experts, one of which gets none."""
    rows = torch.randn(2, 6, 3, generator=generator)
    counts = torch.tensor([[3, 0, 2, 1], [1, 0, 0, 5]])
    weight = torch.randn(4, 3, 3, generator=generator)
    return {"rows_WND": rows, "counts_WE": counts, "weight_EDD": weight, "config": Config()}
