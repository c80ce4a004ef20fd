"""Families whose columns are independent within a component: sums of column statistics, or of statistics of values.

D columns, B rows of a piece, V whole numbers of a table, M statistics, S starts, K components, C = S K.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from mixwell.density._gaussian import TINY, log_positive
from mixwell.density.mixtures.em.entries import Entries, EntryKernel, Products
from mixwell.density.mixtures.em.exponential import ExponentialFamily, ExponentialKernel, Sums, share
from mixwell.density.mixtures.em.kernels import PIECE_BYTES, rows_in_cache
from mixwell.density.mixtures.em.loop import Family, Params, Tally, with_fixed
from mixwell.density.mixtures.em.rows import Piece


class ExponentialColumns(ExponentialFamily):
    """`log p(x_d | k) = sum_m coefficient_kdm t_m(x_d) + constant_kd + base(x_d)`, summed over the observed columns."""

    statistics: int  # M
    harmless = 1.0  # a value of the support, which stands where one is missing

    def __init__(self, columns: int, fixed: tuple[str, ...]) -> None:
        super().__init__(fixed)
        self.columns = columns
        self.feature_count = (self.statistics + 1) * columns

    @abstractmethod
    def transforms(self, x_DB: Tensor) -> Sequence[Tensor]:
        """Statistics t_m (D, B) of values."""

    @abstractmethod
    def coefficients(self, params: Params) -> Sequence[Tensor]:
        """Of the statistics (S, K, D) each, and last the constants (S, K, D)."""

    @abstractmethod
    def estimate(self, means: Sequence[Tensor], params: Params | None) -> Params:
        """Most likely parameters (S, K, D) where statistics have these means (S, K, D)."""

    def log_base(self, x_DB: Tensor) -> Tensor:
        """Log base measure (D, B)."""
        return torch.zeros_like(x_DB)

    def kernel(self, params: Params | None, level: Any) -> ExponentialKernel:
        return ProductKernel(self, params)

    def features(self, x_BD: Tensor) -> Tensor:
        x_DB, seen_DB = whole(x_BD, self.harmless)
        statistics = self.transforms(x_DB)
        if seen_DB is None:
            return torch.cat([*statistics, torch.ones_like(x_DB)])
        parts = [value_DB * seen_DB for value_DB in statistics]
        return torch.cat([*parts, seen_DB.double()])

    def base(self, x_BD: Tensor) -> Tensor:
        x_DB, seen_DB = whole(x_BD, self.harmless)
        base_DB = self.log_base(x_DB)
        return base_DB.sum(0) if seen_DB is None else (base_DB * seen_DB).sum(0)

    def natural(self, params: Params) -> tuple[Tensor, Tensor]:
        natural_SKP = torch.cat(list(self.coefficients(params)), -1)
        return natural_SKP, torch.zeros_like(params["weights"])

    def update(self, sums: Sums, params: Params | None) -> Params:
        *totals, seen_SKD = sums.sums_SKP.split(self.columns, -1)
        means = [mean_of(total_SKD, seen_SKD) for total_SKD in totals]
        new = self.estimate(means, params)
        return kept_unseen(new, params, seen_SKD)


class ProductKernel(ExponentialKernel):
    """Rows of a sparse table are multiplied as they are."""

    family: ExponentialColumns

    def state(self, piece: Piece) -> Any:
        if piece.entries is None:
            return super().state(piece)
        return Products.of(self.family, piece.entries)

    def joint(self, piece: Piece) -> tuple[Any, Tensor]:
        if piece.entries is None:
            return super().joint(piece)
        state = self.state(piece)
        log_SKB = state.joint(self.natural_SKP)
        return state, log_SKB + self.constant_SK1

    def tally(self, state: Any, resp_SKB: Tensor) -> Sums:
        if isinstance(state, Tensor):
            return super().tally(state, resp_SKB)
        return state.sums(resp_SKB)


def mean_of(total_SKD: Tensor, seen_SKD: Tensor) -> Tensor:
    """Means of a statistic; where a component saw nothing of a column, that of all components."""
    pooled_S1D = share(total_SKD.sum(1, keepdim=True), seen_SKD.sum(1, keepdim=True), 1.0)
    return share(total_SKD, seen_SKD, pooled_S1D.expand_as(total_SKD))


def kept_unseen(new: Params, params: Params | None, seen_SKD: Tensor) -> Params:
    """New parameters, with the old ones where a component saw nothing of a column."""
    if params is None:
        return new
    seen = seen_SKD > TINY
    return {name: torch.where(seen, value, params[name]) for name, value in new.items()}


def whole(x_BD: Tensor, harmless: float) -> tuple[Tensor, Tensor | None]:
    """Values (D, B) in float64 with a harmless one where one is missing, and which are there; None where all are."""
    x_DB = x_BD.T.double()
    lost_DB = torch.isnan(x_DB)
    if not bool(lost_DB.any()):
        return x_DB, None
    return x_DB.masked_fill(lost_DB, harmless), ~lost_DB


def bisected(slope: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Where a slope that begins above zero passes it, between numbers given by their logarithms."""
    for _ in range(48):
        middle = 0.5 * (low + high)
        up = slope(middle.exp()) > 0
        low = torch.where(up, middle, low)
        high = torch.where(up, high, middle)
    centre = 0.5 * (low + high)
    return centre.exp()


class ColumnSums(NamedTuple):
    """Weighted sums over rows (float64)."""

    count_SK: Tensor
    seen_SKD: Tensor
    sums_MSKD: Tensor


class ColumnFamily(Family):
    """Columns whose log density may have any form; the M step sees sums of statistics at the old parameters."""

    harmless = 1.0
    tables = False  # whether values are mostly small whole numbers, for which functions are looked up

    def __init__(self, columns: int, fixed: tuple[str, ...]) -> None:
        self.columns, self.fixed = columns, fixed

    @abstractmethod
    def log_density(self, x: Tensor, params: Params) -> Tensor:
        """Log densities (S, K, D, B) of values (D, B) or (V,) under parameters (S, K, D, 1)."""

    @abstractmethod
    def statistics(self, x: Tensor, params: Params | None) -> Sequence[Tensor]:
        """What is summed of values: as many (..., D, B) or (..., V) as the M step wants."""

    @abstractmethod
    def estimate(self, seen_SKD: Tensor, sums_MSKD: Tensor, params: Params | None) -> Params:
        """Better parameters (S, K, D) from the sums; without old ones, those of a start."""

    def kernel(self, params: Params | None, level: Any) -> ColumnKernel:
        return ColumnKernel(self, params)

    def maximise(self, tally: Tally, params: Params | None, level: Any) -> Params:
        sums: ColumnSums = tally.statistics
        total_S1 = sums.count_SK.sum(-1, keepdim=True)
        new = self.estimate(sums.seen_SKD, sums.sums_MSKD, params)
        new = kept_unseen(new, params, sums.seen_SKD)
        new["weights"] = sums.count_SK / total_S1
        return with_fixed(self.fixed, new, params)


@dataclass
class Values:
    """The values of a piece (D, B), and which are there (None: all)."""

    x_DB: Tensor
    seen_DB: Tensor | None

    @property
    def arguments(self) -> Tensor:
        """What functions are evaluated at."""
        return self.x_DB

    def joint(self, log_SKDB: Tensor) -> Tensor:
        """Log densities (S, K, B) of rows."""
        if self.seen_DB is not None:
            log_SKDB = log_SKDB.masked_fill(~self.seen_DB, 0.0)
        return log_SKDB.sum(2)

    def weights(self, resp_SKB: Tensor) -> Tensor:
        """Responsibilities of the arguments (S, K, D, B)."""
        resp_SK1B = resp_SKB[:, :, None].double()
        if self.seen_DB is None:
            return resp_SK1B.expand(-1, -1, len(self.x_DB), -1)
        return resp_SK1B * self.seen_DB


@dataclass
class Counts:
    """A piece of small whole numbers as places in a table of 0 to V - 1, column after column; missing ones are V."""

    place_BD: Tensor
    size: int  # V

    @property
    def arguments(self) -> Tensor:
        """What functions are evaluated at."""
        return torch.arange(self.size, dtype=torch.float64, device=self.place_BD.device)

    def _offset(self) -> Tensor:
        columns = torch.arange(self.place_BD.shape[1], device=self.place_BD.device)
        return self.place_BD + (self.size + 1) * columns

    def joint(self, log_SKDV: Tensor) -> Tensor:
        """Log densities (S, K, B) of rows."""
        S, K = log_SKDV.shape[:2]
        padded_SKDV = torch.nn.functional.pad(log_SKDV, (0, 1))  # a missing value weighs nothing
        table_VC = padded_SKDV.reshape(S * K, -1).T.contiguous()
        log_BC = embedding_bag(self._offset(), table_VC, mode="sum")
        return log_BC.T.reshape(S, K, -1)

    def weights(self, resp_SKB: Tensor) -> Tensor:
        """Responsibilities of the arguments (S, K, D, V)."""
        S, K, _ = resp_SKB.shape
        B, D = self.place_BD.shape
        resp_BC = resp_SKB.reshape(S * K, B).T.double().contiguous()
        total_VC = resp_BC.new_zeros(D * (self.size + 1), S * K)
        for place_B in self._offset().T:
            total_VC.index_add_(0, place_B, resp_BC)
        by_column = total_VC.T.reshape(S, K, D, self.size + 1)
        return by_column[..., :-1]


class ColumnKernel:
    """Log densities and sums of statistics of pieces."""

    def __init__(self, family: ColumnFamily, params: Params | None) -> None:
        self.family, self.params = family, params
        self.entries = EntryKernel(family, params)
        self.columns_last = self.entries.columns_last

    def rows(self, starts_times_components: int) -> int:
        """Rows of a piece."""
        values = self.family.columns * starts_times_components
        return rows_in_cache(8 * values, 4 * PIECE_BYTES)

    def state(self, piece: Piece) -> Values | Counts | Entries:
        """The values of a piece."""
        if piece.entries is not None:
            return Entries.of(piece.entries)
        x_DB, seen_DB = whole(piece.x_BD, self.family.harmless)
        if not self.family.tables:
            return Values(x_DB, seen_DB)
        size = int(x_DB.max()) + 1
        small = size <= x_DB.shape[1]  # else a table costs more than the values themselves
        if not small or bool((x_DB != x_DB.floor()).any()):
            return Values(x_DB, seen_DB)
        place_DB = x_DB.long()
        if seen_DB is not None:
            place_DB = place_DB.masked_fill(~seen_DB, size)
        return Counts(place_DB.T, size)

    def joint(self, piece: Piece) -> tuple[Values | Counts | Entries, Tensor]:
        """The values, and log weight plus log density (S, K, B)."""
        assert self.params is not None and self.columns_last is not None
        state = self.state(piece)
        if isinstance(state, Entries):
            return state, self.entries.joint(state)
        log_SKD = self.family.log_density(state.arguments, self.columns_last)
        log_weights_SK = log_positive(self.params["weights"])
        return state, state.joint(log_SKD) + log_weights_SK[..., None]

    def tally(self, state: Values | Counts | Entries, resp_SKB: Tensor) -> ColumnSums:
        """Weighted sums of the statistics."""
        count_SK = resp_SKB.sum(-1).double()
        if isinstance(state, Entries):
            seen_SKD = count_SK[..., None].expand(-1, -1, self.family.columns)
            return ColumnSums(count_SK, seen_SKD, self.entries.sums(state, resp_SKB))
        weight_SKD = state.weights(resp_SKB)
        statistics = self.family.statistics(state.arguments, self.columns_last)
        sums = [(weight_SKD * value).sum(-1) for value in statistics]
        return ColumnSums(count_SK, weight_SKD.sum(-1), torch.stack(sums))
