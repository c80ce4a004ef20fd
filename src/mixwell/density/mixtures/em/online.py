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

from mixwell.density.mixtures.em.loop import Family, Params, expect
from mixwell.density.mixtures.em.rows import Rows
from mixwell.density.mixtures.em.workers import Workers


class Online:
    """Running sufficient statistics of online EM (Cappe and Moulines, 2009).

    The M step sees them as sums over the rows so far, `rows` at most, so that priors weigh as in a full fit.
    """

    def __init__(self, family: Family, params: Params, decay: float, offset: float, rows: float = math.inf) -> None:
        self.family, self.params, self.decay, self.offset, self.rows = family, params, decay, offset, rows
        self.seen: Tensor | float = 0.0
        self.statistics: Any = None
        self.steps = 0

    def update(self, workers: Workers, rows: Rows, weights_N: Tensor | None) -> float:
        """Take a batch in; returns its mean log-likelihood before."""
        level = self.family.online_level()
        kernel = self.family.kernel(self.params, level)
        batch = self.params["weights"].numel()
        tally = expect(workers, kernel, rows.pieces(kernel.rows(batch)), weights_N)
        rate = 1.0 if self.statistics is None else (self.steps + self.offset) ** -self.decay
        fresh = type(tally.statistics)(*(s / tally.weight for s in tally.statistics))
        old = fresh if self.statistics is None else self.statistics
        self.statistics = type(fresh)(*((1 - rate) * a + rate * b for a, b in zip(old, fresh)))
        bound = float(tally.log_likelihood_S[0] / tally.weight)
        self.seen = torch.clamp(self.seen + tally.weight, max=self.rows)
        tally.statistics, tally.weight = type(fresh)(*(float(self.seen) * s for s in self.statistics)), self.seen
        new = self.family.maximise(tally, self.params, level)
        if not self.family.trusts(new, self.family.levels(new)[-1]):
            self.family.refuse(new)
        self.params, self.steps = new, self.steps + 1
        return bound


def batches(rows: Rows, weights_N: Tensor | None, size: int,
            rng: np.random.RandomState) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(rows, weights) of batches."""
    for start, chunk in rows.chunks():
        order = torch.as_tensor(rng.permutation(len(chunk)), device=chunk.device)
        for part in order.split(size):
            yield chunk[part], None if weights_N is None else weights_N[part + start]
