"""E steps and sums for rows of a sparse table: what zeros give is known beforehand, entries are looked at.

B rows of a piece, D columns, V entries of a piece, M statistics, S starts, K components, C = S K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mixwell.density._gaussian import log_positive
from mixwell.density.mixtures.em.exponential import Sums
from mixwell.density.mixtures.em.loop import Params
from mixwell.density.mixtures.em.sparse import with_entries


class OfColumns(Protocol):
    """What is asked of a family of columns of any form."""

    columns: int

    def log_density(self, x: Tensor, params: Params) -> Tensor:
        """Log densities (S, K, D, B) of values (D, B) or (V,) under parameters (S, K, D, 1)."""

    def statistics(self, x: Tensor, params: Params | None) -> Sequence[Tensor]:
        """What is summed of values: as many (..., D, B) or (..., V) as the M step wants."""


class OfStatistics(Protocol):
    """What is asked of an exponential family of columns."""

    def transforms(self, x_DB: Tensor) -> Sequence[Tensor]:
        """Statistics (D, B) of values."""

    def log_base(self, x_DB: Tensor) -> Tensor:
        """Log base measure (D, B)."""


@dataclass
class Entries:
    """The entries of a piece, and where they stand."""

    value_V: Tensor
    row_V: Tensor
    column_V: Tensor
    rows: int

    @classmethod
    def of(cls, entries: Any) -> Entries:
        """Of a SciPy matrix in CSR form."""
        rows = entries.shape[0]
        lengths_B = np.diff(entries.indptr)
        row_V = np.repeat(np.arange(rows), lengths_B)
        column_V = entries.indices.astype(np.int64)
        value_V = entries.data.astype(np.float64)
        return cls(torch.from_numpy(value_V), torch.from_numpy(row_V), torch.from_numpy(column_V), rows)


class EntryKernel:
    """For columns of any form: every entry's difference to a zero in its place."""

    def __init__(self, family: OfColumns, params: Params | None) -> None:
        self.family = family
        self.zero = torch.zeros(1, dtype=torch.float64)
        self.columns_last: Params | None = None
        if params is not None:
            self.columns_last = {name: value[..., None] for name, value in params.items() if name != "weights"}
            self.log_weights_SK = log_positive(params["weights"])

    @cached_property
    def log_zero_SKD(self) -> Tensor:
        """Log densities of zeros."""
        assert self.columns_last is not None
        log_SKD1 = self.family.log_density(self.zero, self.columns_last)
        return log_SKD1[..., 0]

    @cached_property
    def of_zeros(self) -> list[Tensor]:
        """The statistics of zeros (..., D), or one number for all columns."""
        statistics = self.family.statistics(self.zero, self.columns_last)
        return [value[..., 0] for value in statistics]

    def _own(self, state: Entries) -> Params | None:
        """Parameters (S, K, V, 1) of the entries' columns."""
        if self.columns_last is None:
            return None
        return {name: value[:, :, state.column_V] for name, value in self.columns_last.items()}

    def joint(self, state: Entries) -> Tensor:
        """Log weight plus log density (S, K, B)."""
        own = self._own(state)
        assert own is not None
        log_SKV1 = self.family.log_density(state.value_V[:, None], own)
        gain_SKV = log_SKV1[..., 0] - self.log_zero_SKD[..., state.column_V]
        starts = gain_SKV.shape[:2]
        gain_SKB = gain_SKV.new_zeros(*starts, state.rows)
        gain_SKB.index_add_(2, state.row_V, gain_SKV)
        constant_SK = self.log_zero_SKD.sum(-1) + self.log_weights_SK
        return gain_SKB + constant_SK[..., None]

    def sums(self, state: Entries, resp_SKB: Tensor) -> Tensor:
        """Weighted sums of the statistics (M, S, K, D)."""
        resp_SKB = resp_SKB.double()
        count_SK1 = resp_SKB.sum(-1, keepdim=True)
        weight_SKV = resp_SKB[:, :, state.row_V]
        of_entries = self.family.statistics(state.value_V[:, None], self._own(state))
        sums = []
        for entry, zero in zip(of_entries, self.of_zeros):
            zero_SKD = zero.expand(*count_SK1.shape[:2], self.family.columns)
            over_SKV = entry[..., 0] - zero_SKD[..., state.column_V]
            gain_SKV = weight_SKV * over_SKV
            total_SKD = count_SK1 * zero_SKD
            sums.append(total_SKD.index_add(2, state.column_V, gain_SKV))
        return torch.stack(sums)


@dataclass
class Products:
    """Statistics of a piece's entries as sparse matrices, what a zero in their place would give taken off."""

    parts: list[Any]  # SciPy's CSR (B, D), one for each statistic
    of_zero_M: Tensor
    base_B: Tensor  # log base measures

    @classmethod
    def of(cls, family: OfStatistics, entries: Any) -> Products:
        """Of a SciPy matrix in CSR form."""
        B, D = entries.shape
        zero_11 = torch.zeros(1, 1, dtype=torch.float64)
        value_1V = torch.from_numpy(entries.data.astype(np.float64))[None]
        of_zero_M = torch.cat([part.reshape(1) for part in family.transforms(zero_11)])
        gains = [part[0] - zero for part, zero in zip(family.transforms(value_1V), of_zero_M)]
        parts = [with_entries(entries, gain_V.numpy()) for gain_V in gains]
        base_of_zero = family.log_base(zero_11)[0]
        base_V = family.log_base(value_1V)[0] - base_of_zero
        sums = with_entries(entries, base_V.numpy()).sum(1)
        base_B = torch.from_numpy(np.asarray(sums).reshape(B))
        return cls(parts, of_zero_M, base_B + D * base_of_zero)

    def joint(self, natural_SKP: Tensor) -> Tensor:
        """Natural parameters times features (S, K, B), base measures included."""
        S, K, _ = natural_SKP.shape
        D = self.parts[0].shape[1]
        *slopes, constant_CD = natural_SKP.reshape(S * K, -1).split(D, 1)
        log_CB = self.base_B + constant_CD.sum(1, keepdim=True)
        for part, slope_CD, zero in zip(self.parts, slopes, self.of_zero_M):
            product_BC = part @ slope_CD.T.contiguous().numpy()
            log_CB = log_CB + torch.from_numpy(product_BC).T
            log_CB = log_CB + zero * slope_CD.sum(1, keepdim=True)
        return log_CB.reshape(S, K, -1)

    def sums(self, resp_SKB: Tensor) -> Sums:
        """Weighted sums of the features."""
        S, K, B = resp_SKB.shape
        resp_BC = resp_SKB.reshape(S * K, B).T.double().contiguous()
        count_SK = resp_SKB.double().sum(-1)
        seen_SKD = count_SK[..., None].expand(S, K, self.parts[0].shape[1])
        totals = []
        for part, zero in zip(self.parts, self.of_zero_M):
            total_DC = part.T @ resp_BC.numpy()
            gain_SKD = torch.from_numpy(total_DC).T.reshape(S, K, -1)
            totals.append(gain_SKD + zero * seen_SKD)
        return Sums(count_SK, torch.cat([*totals, seen_SKD], -1))
