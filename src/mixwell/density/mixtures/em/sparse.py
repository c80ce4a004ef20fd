"""Rows of a sparse table: walked by their entries, never as a whole with all its zeros.

N rows, D columns, B rows of a piece, V entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import get_index_dtype
from torch import Tensor

from mixwell.density.mixtures.em.rows import Piece, Rows, type_of

CHUNK_BYTES = 1 << 26  # of rows written out with their zeros, where something needs them so
MOST_ENTRIES = 1 << 16  # of a piece


def with_entries(x: Any, value_V: np.ndarray) -> Any:
    """A matrix in CSR form with these entries in the places of another's, in short indices where they do."""
    largest = max(x.shape[1], x.nnz)
    kind = get_index_dtype(maxval=largest)
    indices = x.indices.astype(kind, copy=False)
    starts = x.indptr.astype(kind, copy=False)
    return type(x)((value_V, indices, starts), shape=x.shape)


class SparseRows(Rows):
    """A SciPy matrix or array in CSR form; what it has no entry for is zero."""

    def __init__(self, x: Any, names: Sequence[str] | None = None) -> None:
        if not x.has_canonical_format:
            x = x.copy()  # what was given stays as it is
            x.sum_duplicates()
        self.x = with_entries(x, x.data)
        self.n_rows, self.n_columns = x.shape
        self.dtype = type_of(x)
        self.names = names

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        row_bytes = self.n_columns * self.x.dtype.itemsize
        rows = max(1, CHUNK_BYTES // max(1, row_bytes))
        for start in range(0, self.n_rows, rows):
            part = self.x[start : start + rows]
            yield start, torch.from_numpy(part.toarray())

    def pieces(self, size: int) -> Iterator[Piece]:
        """Pieces with about as many entries as `size` rows with all of their zeros hold values, but not too many."""
        most = min(size * self.n_columns, MOST_ENTRIES)
        start = 0
        while start < self.n_rows:
            before = self.x.indptr[start]
            stop = int(np.searchsorted(self.x.indptr, before + most, side="right")) - 1
            stop = min(max(stop, start + 1), self.n_rows)
            yield self._piece(start, stop)
            start = stop

    def _piece(self, start: int, stop: int) -> Piece:
        place = slice(start, stop)
        nothing_B0 = torch.empty(stop - start, 0, dtype=self.dtype)
        return Piece(nothing_B0, place, entries=self.x[place])

    def first_where(self, wrong: Callable[[Tensor], Tensor]) -> tuple[int, int] | None:
        zero = torch.zeros(1, 1, dtype=self.dtype)
        if bool(wrong(zero).any()):  # then it matters where the zeros are
            return super().first_where(wrong)
        values_1V = torch.from_numpy(self.x.data)[None]
        places = wrong(values_1V)[0].nonzero()
        if not len(places):
            return None
        place = int(places[0, 0])
        row = int(np.searchsorted(self.x.indptr, place, side="right")) - 1
        return row, int(self.x.indices[place])

    def some(self, index: np.ndarray) -> SparseRows:
        """Some of the rows, in the order of an index."""
        return SparseRows(self.x[index], self.names)
