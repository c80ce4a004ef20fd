"""Rows to fit: arrays in memory, tensors on any device, memory maps and Parquet files read in pieces.

N rows, D columns, B rows of one piece.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.density.mixtures.em.processes import Alone

IN_MEMORY_BYTES = 1 << 28  # memory maps up to this size are arrays like others
READ_ROWS = 1 << 17  # rows read from disk at a time: large enough to be fast, 64 MiB at 64 double columns


@dataclass(frozen=True)
class Piece:
    """Some rows: `x_BD`, where they stand in the whole, and which columns they have (None = all of them).

    `observed_PD` holds P patterns of observed columns; rows come in pattern order, the same number for each.
    """

    x_BD: Tensor
    index: slice | Tensor
    observed_PD: Tensor | None = None


class Rows:
    """Rows that can be walked many times, always in the same order, a piece at a time."""

    n_rows: int
    n_columns: int
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    names: Sequence[str] | None = None
    processes: Alone = Alone()  # among which the table is spread
    allow_nan = True  # whether NaN is a missing value, or an error

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of contiguous chunks that fit into memory."""
        raise NotImplementedError

    def pieces(self, size: int) -> Iterator[Piece]:
        """Pieces of at most `size` rows; rows with missing values come grouped by what they lack."""
        for start, chunk in self.chunks():
            groups = _patterns(chunk)
            if groups:
                yield from _grouped(chunk, groups, start, size)
                continue
            for offset in range(0, len(chunk), size):
                part_BD = chunk[offset : offset + size]
                yield Piece(part_BD, slice(start + offset, start + offset + len(part_BD)))

    def take(self, index: np.ndarray) -> Tensor:
        """The rows of a sorted or unsorted index, in its order."""
        order = np.argsort(index, kind="stable")
        wanted, found = np.asarray(index)[order], []
        for start, chunk in self.chunks():
            low, high = np.searchsorted(wanted, (start, start + len(chunk)))
            found.append(chunk[torch.as_tensor(wanted[low:high] - start, device=chunk.device)])
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return torch.cat(found)[torch.as_tensor(back, device=self.device)]

    @property
    def streamed(self) -> bool:
        """Whether the rows are read from disk again at every pass."""
        return False


class StreamRows(Rows):
    """Rows that are read from disk again at every pass, and looked at as they come."""

    def read(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of chunks, whatever they hold."""
        raise NotImplementedError

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        for start, chunk in self.read():
            if not bool(chunk.sum().isfinite()):
                refuse_infinite(chunk, start, self.names, self.allow_nan)
            yield start, chunk

    @property
    def streamed(self) -> bool:
        return True


def _has_nan(chunk: Tensor) -> bool:
    return bool(torch.isnan(chunk.sum()))  # infinities were refused when the rows were opened


def _patterns(chunk: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(row numbers, observed columns) of each pattern of missing values; empty where nothing is missing."""
    if not _has_nan(chunk):
        return []
    observed_ND = ~torch.isnan(chunk).cpu().numpy()
    packed = np.packbits(observed_ND, axis=1)
    keys = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(len(first) + 1))
    return [(torch.from_numpy(order[a:b]), torch.from_numpy(observed_ND[i]))
            for i, a, b in zip(first, bounds[:-1], bounds[1:])]


def _grouped(chunk: Tensor, groups: list[tuple[Tensor, Tensor]], start: int, size: int) -> Iterator[Piece]:
    """Whole rows in pieces of `size`, then patterns in pieces of many with the same number of rows.

    A pattern's rows are cut into lots of 1, 4, 16, ... rows, so that few sizes of lots serve all patterns. A lot counts
    for as many rows more as its matrices are wide.
    """
    lots: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for index, observed_D in groups:
        if bool(observed_D.all()):
            for part in index.split(size):
                yield Piece(chunk[part.to(chunk.device)], part + start)
            continue
        while len(index):
            rows = min(4 ** ((len(index).bit_length() - 1) // 2), size)
            whole = len(index) // rows * rows
            lots.setdefault(rows, []).extend((part, observed_D) for part in index[:whole].split(rows))
            index = index[whole:]
    for rows, found in sorted(lots.items()):
        many = max(1, size // (rows + 4 * chunk.shape[1]))
        for first in range(0, len(found), many):
            parts, observed = zip(*found[first : first + many])
            index = torch.cat(parts)
            yield Piece(chunk[index.to(chunk.device)], index + start, torch.stack(observed))


class ArrayRows(Rows):
    """A two-dimensional numpy array or tensor in memory."""

    def __init__(self, x: np.ndarray | Tensor, names: Sequence[str] | None = None) -> None:
        self._x = x
        self.n_rows, self.n_columns = x.shape
        self.names = names
        if isinstance(x, Tensor):
            self.dtype, self.device = x.dtype, x.device
        else:
            self.dtype = torch.float32 if x.dtype == np.float32 else torch.float64
        self._groups: list[tuple[Tensor, Tensor]] | None = None

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        x = self._x
        if isinstance(x, Tensor):
            yield 0, x.detach()
        elif self._whole():
            yield 0, torch.from_numpy(x)
        else:  # a read-only or reversed array cannot be seen as a tensor; copy it a chunk at a time
            for start in range(0, len(x), READ_ROWS):
                yield start, torch.from_numpy(np.array(x[start : start + READ_ROWS], order="C"))

    def pieces(self, size: int) -> Iterator[Piece]:
        if self._groups is None:
            self._groups = _patterns(next(self.chunks())[1]) if self._whole() else []
        if self._groups:
            yield from _grouped(next(self.chunks())[1], self._groups, 0, size)
        elif self._whole():
            for start, part in enumerate(next(self.chunks())[1].split(size)):
                yield Piece(part, slice(start * size, start * size + len(part)))
        else:
            yield from super().pieces(size)

    def _whole(self) -> bool:
        """Whether the array can be seen as one tensor."""
        x = self._x
        return isinstance(x, Tensor) or (x.flags.writeable and x.dtype.isnative
                                         and all(s >= 0 and s % x.itemsize == 0 for s in x.strides))


class MemmapRows(StreamRows):
    """A numpy memory map, opened anew for every chunk so that pages already read do not stay resident."""

    def __init__(self, x: np.memmap) -> None:
        assert x.filename is not None
        self._file, self._kind = x.filename, x.dtype
        map_start = x.offset - x.offset % mmap.ALLOCATIONGRANULARITY
        self._offset = map_start + x.ctypes.data - np.frombuffer(x._mmap, np.uint8).ctypes.data  # type: ignore[attr-defined]  # a slice?
        self.n_rows, self.n_columns = x.shape
        self.dtype = torch.float32 if x.dtype == np.float32 else torch.float64

    def read(self) -> Iterator[tuple[int, Tensor]]:
        row = self.n_columns * self._kind.itemsize
        with open(self._file, "rb", buffering=0) as file:
            for start in range(0, self.n_rows, READ_ROWS):
                file.seek(self._offset + start * row)
                rows = min(READ_ROWS, self.n_rows - start)
                part = np.fromfile(file, self._kind, rows * self.n_columns)
                if len(part) != rows * self.n_columns:
                    raise MixwellError(f"{self._file} ends before row {start + rows}; write it again.")
                yield start, torch.from_numpy(part.reshape(rows, self.n_columns))


class ParquetRows(StreamRows):
    """The numeric columns of one or several Parquet files with the same columns; nulls are missing values.

    What pandas wrote as an index is left out, as where pandas reads the file.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._files: list[pq.ParquetFile] = []
        fields: list[pa.Field] = []
        self.names: list[str] = []
        for path in paths:
            try:
                file = pq.ParquetFile(path)
            except (pa.ArrowInvalid, OSError) as error:
                raise MixwellError(f"cannot read {path} as Parquet: {error}.") from error
            schema = file.schema_arrow
            index = [c for c in (schema.pandas_metadata or {}).get("index_columns", []) if isinstance(c, str)]
            own = [field for field in schema if field.name not in index]
            names = [field.name for field in own]
            if self._files and names != self.names:
                raise MixwellError(f"{path} has other columns than {paths[0]}; expected {', '.join(self.names)}.")
            for field in own:
                if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or
                        pa.types.is_boolean(field.type)):
                    raise MixwellError(f"column {field.name!r} of {path} is {field.type}; expected numbers. "
                                       "Leave it out or encode it first.")
            self.names, fields = names, fields + own
            self._files.append(file)
        single = all(field.type in (pa.float32(), pa.float16()) for field in fields)
        self.dtype = torch.float32 if single else torch.float64
        self.n_columns = len(self.names)
        self.n_rows = sum(file.metadata.num_rows for file in self._files)

    def read(self) -> Iterator[tuple[int, Tensor]]:
        kind = np.float32 if self.dtype == torch.float32 else np.float64
        start = 0
        for file in self._files:
            for batch in file.iter_batches(batch_size=READ_ROWS, columns=self.names):
                part = np.empty((batch.num_rows, self.n_columns), kind)
                for j, name in enumerate(self.names):
                    part[:, j] = batch.column(name).to_numpy(zero_copy_only=False)
                yield start, torch.from_numpy(part)
                start += batch.num_rows


def open_rows(source: Any) -> Rows | None:
    """Rows from a memory map, a `.npy` or Parquet path, a folder of Parquet files or a list of them; else None."""
    if isinstance(source, np.memmap):
        # a private copy's changes are not on disk; small ones (joblib makes them of arrays) are read as arrays
        large = source.mode != "c" and source.nbytes > IN_MEMORY_BYTES
        return MemmapRows(source) if large and _streamable(source) else None
    many = isinstance(source, (list, tuple)) and len(source) > 0 and all(isinstance(p, (str, Path)) for p in source)
    if not many and not isinstance(source, (str, Path)):
        return None
    paths = [Path(p) for p in source] if many else [Path(source)]
    for path in paths:
        if not path.exists():
            raise MixwellError(f"{path} does not exist; expected a Parquet file, a folder of them, or a .npy file.")
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        paths = sorted(folder.glob("*.parquet"))
        if not paths:
            raise MixwellError(f"{folder} holds no .parquet file.")
    if len(paths) == 1 and paths[0].suffix == ".npy":
        try:
            mapped = np.load(paths[0], mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise MixwellError(f"cannot read {paths[0]} as a .npy file of numbers: {error}.") from error
        if not _streamable(mapped):
            raise MixwellError(f"{paths[0]} holds {mapped.dtype} of shape {mapped.shape}; expected a 2-D C-ordered "
                               "float32 or float64 array.")
        return MemmapRows(mapped)
    return ParquetRows(paths)


def _streamable(x: np.memmap) -> bool:
    return x.ndim == 2 and x.dtype in (np.float32, np.float64) and x.flags.c_contiguous and x.filename is not None


def imputed(x_ND: Tensor) -> Tensor:
    """Column means in place of missing values: good enough to start from."""
    return torch.where(torch.isnan(x_ND), torch.nanmean(x_ND, 0), x_ND) if bool(torch.isnan(x_ND.sum())) else x_ND


def tensor_rows(x: Tensor, allow_nan: bool) -> Rows:
    """Rows of a tensor, or a `ValueError` that says what is wrong with it."""
    if x.ndim != 2:
        raise ValueError(f"Expected 2D tensor, got {x.ndim}D tensor instead; reshape it to (rows, columns).")
    if x.is_complex() or x.is_sparse:
        raise ValueError(f"expected a dense tensor of real numbers, got {x.dtype} ({x.layout}).")
    x = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().double()
    rows = ArrayRows(x)
    if not (bool(x.isfinite().all()) or (allow_nan and not bool(x.isinf().any()))):
        locate_infinite(rows)
    return rows


def column_name(names: Sequence[str] | None, column: int) -> str:
    """What an error calls a column: its name in quotes, or its number."""
    return str(column) if names is None else repr(names[column])


def refuse_infinite(chunk: Tensor, start: int, names: Sequence[str] | None, allow_nan: bool) -> None:
    """Name the first value that no density can take, if there is one."""
    found = (chunk.isinf() if allow_nan else ~chunk.isfinite()).nonzero()
    if len(found):
        row, column = found[0].tolist()
        raise ValueError(f"Input X contains {'NaN' if bool(chunk[row, column].isnan()) else 'infinity'}: row "
                         f"{start + row}, column {column_name(names, column)}. Remove or replace it.")


def locate_infinite(rows: Rows) -> None:
    """Say why a log-likelihood is not finite."""
    for start, chunk in rows.chunks():
        refuse_infinite(chunk, start, rows.names, allow_nan=False)
    raise ValueError("the log-likelihood is not finite; scale the input data or increase reg_covar.")
