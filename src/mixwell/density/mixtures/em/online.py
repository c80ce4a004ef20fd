"""Online EM: running averages of sufficient statistics, moved a little by every batch.

S starts, K components.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.density.mixtures.em.loop import Family, Params, Run, Tally, expect, select
from mixwell.density.mixtures.em.rows import Rows
from mixwell.density.mixtures.em.workers import Workers


class Online:
    """Running sufficient statistics of online EM (Cappe and Moulines, 2009).

    The M step sees them as sums over the rows so far, `rows` at most, so that priors count as in a full fit.
    """

    def __init__(self, family: Family, params: Params, decay: float, offset: float, rows: float = math.inf) -> None:
        self.family = family
        self.params = params
        self.decay = decay
        self.offset = offset
        self.rows = rows
        self.seen: Tensor | float = 0.0
        self.statistics: Any = None
        self.steps = 0

    def update(self, workers: Workers, rows: Rows, weights_N: Tensor | None) -> float:
        """Take a batch in; returns its mean log-likelihood before."""
        level = self.family.online_level()
        kernel = self.family.kernel(self.params, level)
        batch = self.params["weights"].numel()
        pieces = rows.pieces(kernel.rows(batch))
        tally = expect(workers, kernel, pieces, weights_N)
        self._average(tally)
        so_far = self._so_far(tally)
        new = self.family.maximise(so_far, self.params, level)
        most_careful = self.family.levels(new)[-1]
        if not self.family.trusts(new, most_careful):
            self.family.refuse(new)
        self.params = new
        self.steps += 1
        bound_S = tally.log_likelihood_S / tally.weight
        return float(bound_S[0])

    def _average(self, tally: Tally) -> None:
        """Move the running means of a row's statistics towards those of a batch."""
        kind = type(tally.statistics)
        fresh = kind(*(total / tally.weight for total in tally.statistics))
        if self.statistics is None:
            self.statistics = fresh
            return
        rate = (self.steps + self.offset) ** -self.decay
        kept = 1 - rate
        pairs = zip(self.statistics, fresh)
        self.statistics = kind(*(kept * old + rate * new for old, new in pairs))

    def _so_far(self, tally: Tally) -> Tally:
        """The running means as sums over the rows so far."""
        weight = self.seen + tally.weight
        self.seen = torch.clamp(weight, max=self.rows)
        rows = float(self.seen)
        kind = type(tally.statistics)
        statistics = kind(*(rows * mean for mean in self.statistics))
        return Tally(statistics, tally.log_likelihood_S, self.seen)


def batches(rows: Rows, weights_N: Tensor | None, size: int,
            rng: np.random.RandomState) -> Iterator[tuple[Rows, Tensor | None]]:
    """(rows, weights) of batches, in random order within what is in memory at a time."""
    for start, chunk in rows.chunks():
        shuffled = rng.permutation(len(chunk))
        order = torch.as_tensor(shuffled, device=chunk.device)
        for part in order.split(size):
            weights_B = None if weights_N is None else weights_N[part + start]
            yield rows.batch(chunk[part]), weights_B


def epochs(workers: Workers, online: Online, rows: Rows, weights_N: Tensor | None, size: int, *, tol: float,
           max_iter: int, rng: np.random.RandomState) -> Run:
    """Passes of online EM over all rows in batches of `size`, until one gains less than `tol`."""
    run = Run(select(online.params, 0))
    for _ in range(max_iter):
        parts = batches(rows, weights_N, size, rng)
        bound = _epoch(workers, online, parts)
        run.record(select(online.params, 0), bound, tol)
        if run.converged:
            break
    return run


def _epoch(workers: Workers, online: Online, parts: Iterator[tuple[Rows, Tensor | None]]) -> float:
    """Mean log-likelihood of the batches, each before it was taken in."""
    total, weight = 0.0, 0.0
    for batch, weights_B in parts:
        share = float(batch.n_rows) if weights_B is None else float(weights_B.sum())
        if share > 0:
            bound = online.update(workers, batch, weights_B)
            total += share * bound
            weight += share
    return total / weight
