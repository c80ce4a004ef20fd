"""A family with a prior that is worth some rows of the whole table, for EM that climbs to the posterior's mode.

B rows of a piece, S starts, K components.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.density.mixtures.em.loop import Family, Params, Tally
from mixwell.density.mixtures.em.product import Part
from mixwell.density.mixtures.em.rows import Piece


class Sums(NamedTuple):
    """A family's own sums with the prior's rows in them, and the log joint densities of these (S,)."""

    own: Part
    logs_S: Tensor


class Seen(NamedTuple):
    """What a kernel keeps of a piece, and its log joint densities summed over components (S, B)."""

    own: Any
    logs_SB: Tensor


class Smoothed(Family):
    """Every component has also seen `share` of each row: a family's M step finds the mode, its bound the posterior."""

    def __init__(self, family: Family, share: float) -> None:
        self.family, self.share = family, share
        self._of: Params | None = None
        self._logs_S: Tensor | float = 0.0

    def __getattr__(self, name: str) -> Any:
        """What estimators read of their own family."""
        if name == "family":  # while a copy is made there is none yet
            raise AttributeError(name)
        return getattr(self.family, name)

    def levels(self, params: Params | None) -> tuple[Any, ...]:
        return self.family.levels(params)

    def trusts(self, params: Params, level: Any) -> bool:
        return self.family.trusts(params, level)

    def refuse(self, params: Params) -> None:
        self.family.refuse(params)

    def kernel(self, params: Params | None, level: Any) -> SmoothedKernel:
        return SmoothedKernel(self.family.kernel(params, level), self.share)

    def maximise(self, tally: Tally, params: Params | None, level: Any) -> Params:
        sums: Sums = tally.statistics
        self._of, self._logs_S = params, self.share * sums.logs_S
        own = Tally(sums.own.value, tally.log_likelihood_S, tally.weight)
        return self.family.maximise(own, params, level)

    def log_prior(self, params: Params) -> Tensor | float:
        assert params is self._of  # the E step of these parameters summed it
        return self.family.log_prior(params) + self._logs_S


class SmoothedKernel:
    """Responsibilities that are given (a start's) stay as they are; computed ones are smoothed."""

    def __init__(self, kernel: Any, share: float) -> None:
        self.kernel, self.share = kernel, share

    def rows(self, starts_times_components: int) -> int:
        """Rows of a piece."""
        return int(self.kernel.rows(starts_times_components))

    def state(self, piece: Piece) -> Any:
        """What `tally` needs of a piece when the responsibilities are given."""
        return self.kernel.state(piece)

    def joint(self, piece: Piece) -> tuple[Seen, Tensor]:
        """States, and log weight plus log density (S, K, B)."""
        state, log_SKB = self.kernel.joint(piece)
        return Seen(state, log_SKB.double().sum(1)), log_SKB

    def tally(self, state: Any, resp_SKB: Tensor) -> Sums:
        """Sums over rows; responsibilities add up to a row's weight."""
        if not isinstance(state, Seen):
            sums = self.kernel.tally(state, resp_SKB)
            return Sums(Part(sums), torch.zeros_like(resp_SKB[:, 0, 0], dtype=torch.float64))
        weight_S1B = resp_SKB.sum(1, keepdim=True)
        sums = self.kernel.tally(state.own, resp_SKB + self.share * weight_S1B)
        logs_SB = state.logs_SB * weight_S1B[:, 0]
        return Sums(Part(sums), logs_SB.sum(1))
