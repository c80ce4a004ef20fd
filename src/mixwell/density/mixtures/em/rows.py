"""Rows to fit: arrays in memory, tensors on any device, memory maps and Parquet files read in pieces.

N rows, D columns, B rows of one piece.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
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

    `observed_PD` holds P patterns of observed columns; rows come in pattern order, the same number for each. `entries`
    holds the rows of a sparse table (SciPy's CSR), of which `x_BD` then has no columns.
    """

    x_BD: Tensor
    index: slice | Tensor
    observed_PD: Tensor | None = None
    entries: Any = None


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
            groups = patterns(chunk)
            if groups:
                yield from _grouped(chunk, groups, start, size)
            else:
                yield from _in_order(chunk, start, size)

    def take(self, index: np.ndarray) -> Tensor:
        """The rows of a sorted or unsorted index, in its order."""
        order = np.argsort(index, kind="stable")
        wanted = np.asarray(index)[order]
        found = []
        for start, chunk in self.chunks():
            stop = start + len(chunk)
            low, high = np.searchsorted(wanted, (start, stop))
            within = wanted[low:high] - start
            places = torch.as_tensor(within, device=chunk.device)
            found.append(chunk[places])
        back = np.argsort(order, kind="stable")
        return torch.cat(found)[torch.as_tensor(back, device=self.device)]

    def batch(self, x_BD: Tensor) -> Rows:
        """Some of the rows, as rows of the same kind."""
        return ArrayRows(x_BD)

    def first_where(self, wrong: Callable[[Tensor], Tensor]) -> tuple[int, int] | None:
        """Row and column of the first value for which `wrong` holds."""
        for start, chunk in self.chunks():
            places = wrong(chunk).nonzero()
            if len(places):
                row, column = places[0].tolist()
                return start + row, column
        return None

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


def patterns(chunk: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(row numbers, observed columns) of each pattern of missing values; empty where nothing is missing."""
    if not _has_nan(chunk):
        return []
    observed_ND = ~torch.isnan(chunk).cpu().numpy()
    keys_N = _one_key_a_row(observed_ND)
    _, first_P, pattern_N = np.unique(keys_N, return_index=True, return_inverse=True)
    order_N = np.argsort(pattern_N, kind="stable")
    stops_P = np.cumsum(np.bincount(pattern_N))
    rows_by_pattern = np.split(order_N, stops_P[:-1])
    found = []
    for first, rows in zip(first_P, rows_by_pattern):
        observed_D = torch.from_numpy(observed_ND[first])
        found.append((torch.from_numpy(rows), observed_D))
    return found


def _one_key_a_row(observed_ND: np.ndarray) -> np.ndarray:
    """Bits of every row as one value (N,), which sorts and compares fast."""
    packed = np.packbits(observed_ND, axis=1)
    kind = np.dtype((np.void, packed.shape[1]))
    keys = np.ascontiguousarray(packed).view(kind)
    return keys.ravel()


def _in_order(chunk: Tensor, start: int, size: int) -> Iterator[Piece]:
    """Whole rows as they come, `size` at a time."""
    for part_BD in chunk.split(size):
        stop = start + len(part_BD)
        yield Piece(part_BD, slice(start, stop))
        start = stop


def _grouped(chunk: Tensor, groups: list[tuple[Tensor, Tensor]], start: int, size: int) -> Iterator[Piece]:
    """Whole rows in pieces of `size`, then patterns in pieces of many with the same number of rows.

    A lot counts for as many rows more as its matrices are wide.
    """
    lots: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for index, observed_D in groups:
        if bool(observed_D.all()):
            for part in index.split(size):
                yield Piece(chunk[part.to(chunk.device)], part + start)
            continue
        for part in _in_lots(index, size):
            same = lots.setdefault(len(part), [])
            same.append((part, observed_D))
    for rows, found in sorted(lots.items()):
        width = 4 * chunk.shape[1]
        many = max(1, size // (rows + width))
        for first in range(0, len(found), many):
            parts, observed = zip(*found[first : first + many])
            index = torch.cat(parts)
            yield Piece(chunk[index.to(chunk.device)], index + start, torch.stack(observed))


def _in_lots(index: Tensor, size: int) -> Iterator[Tensor]:
    """A pattern's rows in lots of 1, 4, 16, ... rows, so that few sizes of lots serve all patterns."""
    while len(index):
        magnitude = (len(index).bit_length() - 1) // 2
        rows = min(4**magnitude, size)
        whole = len(index) // rows * rows
        yield from index[:whole].split(rows)
        index = index[whole:]


class ArrayRows(Rows):
    """A two-dimensional numpy array or tensor in memory."""

    def __init__(self, x: np.ndarray | Tensor, names: Sequence[str] | None = None) -> None:
        self._x = x
        self.n_rows, self.n_columns = x.shape
        self.names = names
        if isinstance(x, Tensor):
            self.dtype, self.device = x.dtype, x.device
        else:
            self.dtype = type_of(x)
        self._groups: list[tuple[Tensor, Tensor]] | None = None

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        x = self._x
        if isinstance(x, Tensor):
            yield 0, x.detach()
        elif self._whole():
            yield 0, torch.from_numpy(x)
        else:  # a read-only or reversed array cannot be seen as a tensor; copy it a chunk at a time
            for start in range(0, len(x), READ_ROWS):
                part = x[start : start + READ_ROWS]
                yield start, torch.from_numpy(np.array(part, order="C"))

    def pieces(self, size: int) -> Iterator[Piece]:
        if not self._whole():
            yield from super().pieces(size)
            return
        _, x_ND = next(self.chunks())
        if self._groups is None:  # looked for once: EM walks the same rows again and again
            self._groups = patterns(x_ND)
        if self._groups:
            yield from _grouped(x_ND, self._groups, 0, size)
        else:
            yield from _in_order(x_ND, 0, size)

    def _whole(self) -> bool:
        """Whether the array can be seen as one tensor."""
        x = self._x
        if isinstance(x, Tensor):
            return True
        if not (x.flags.writeable and x.dtype.isnative):
            return False
        return all(stride >= 0 and stride % x.itemsize == 0 for stride in x.strides)


def type_of(x: np.ndarray) -> torch.dtype:
    """The type that an array's numbers are computed in."""
    return torch.float32 if x.dtype == np.float32 else torch.float64


class BlockRows(ArrayRows):
    """Rows grouped by what their numeric columns lack; other columns take a missing value as it comes."""

    def __init__(self, x_ND: np.ndarray, numeric: Sequence[int]) -> None:
        super().__init__(x_ND)
        self.numeric = list(numeric)
        if not self._whole():  # patterns that are known beforehand number the rows of one tensor
            self._x = np.array(x_ND, order="C")
        numbers_ND = torch.from_numpy(x_ND[:, self.numeric])
        self._groups = patterns(numbers_ND)

    def batch(self, x_BD: Tensor) -> Rows:
        return BlockRows(x_BD.numpy(), self.numeric)


class MappedRows(Rows):
    """Rows of another kind seen through a function of their values."""

    def __init__(self, rows: Rows, through: Callable[[Tensor], Tensor]) -> None:
        self._rows, self._through = rows, through
        self.n_rows, self.n_columns = rows.n_rows, rows.n_columns
        self.dtype, self.device, self.names = rows.dtype, rows.device, rows.names

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        for start, chunk in self._rows.chunks():
            yield start, self._through(chunk)

    @property
    def streamed(self) -> bool:
        return self._rows.streamed


class MemmapRows(StreamRows):
    """A numpy memory map, opened anew for every chunk so that pages already read do not stay resident."""

    def __init__(self, x: np.memmap) -> None:
        assert x.filename is not None
        self._file = x.filename
        self._kind = x.dtype
        mapped_from = x.offset - x.offset % mmap.ALLOCATIONGRANULARITY
        mapped = np.frombuffer(x._mmap, np.uint8)  # type: ignore[attr-defined]
        into_the_map = x.ctypes.data - mapped.ctypes.data  # more than the header where x is a slice
        self._offset = mapped_from + into_the_map
        self.n_rows, self.n_columns = x.shape
        self.dtype = type_of(x)

    def read(self) -> Iterator[tuple[int, Tensor]]:
        columns = self.n_columns
        row_bytes = columns * self._kind.itemsize
        with open(self._file, "rb", buffering=0) as file:
            for start in range(0, self.n_rows, READ_ROWS):
                rows = min(READ_ROWS, self.n_rows - start)
                file.seek(self._offset + start * row_bytes)
                values = np.fromfile(file, self._kind, rows * columns)
                if len(values) != rows * columns:
                    raise MixwellError(f"{self._file} ends before row {start + rows}; write it again.")
                part = values.reshape(rows, columns)
                yield start, torch.from_numpy(part)


class ParquetRows(StreamRows):
    """The numeric columns of one or several Parquet files with the same columns; nulls are missing values.

    What pandas wrote as an index is left out, as where pandas reads the file.
    `MixwellError` where the files do not fit together.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        import pyarrow as pa

        self._files: list[Any] = []
        fields: list[pa.Field] = []
        self.names: list[str] = []
        for path in paths:
            file = _open_parquet(path)
            own = _data_fields(file)
            names = [field.name for field in own]
            if self._files and names != self.names:
                raise MixwellError(f"{path} has other columns than {paths[0]}; expected {', '.join(self.names)}.")
            _refuse_other_types(own, path)
            self.names = names
            fields += own
            self._files.append(file)
        short = (pa.float32(), pa.float16())
        single = all(field.type in short for field in fields)
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
                    column = batch.column(name)
                    part[:, j] = column.to_numpy(zero_copy_only=False)
                yield start, torch.from_numpy(part)
                start += batch.num_rows


def _open_parquet(path: Path) -> Any:
    """A Parquet file, not read yet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise MixwellError(f"cannot read {path} as Parquet: {error}.") from error


def _data_fields(file: Any) -> list[Any]:
    """The fields of a Parquet file without what pandas wrote as an index."""
    schema = file.schema_arrow
    notes = schema.pandas_metadata or {}
    index = [name for name in notes.get("index_columns", []) if isinstance(name, str)]
    return [field for field in schema if field.name not in index]


def _refuse_other_types(fields: list[Any], path: Path) -> None:
    from pyarrow import types

    for field in fields:
        kind = field.type
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise MixwellError(f"column {field.name!r} of {path} is {kind}; expected numbers. "
                               "Leave it out or encode it first.")


def open_rows(source: Any) -> Rows | None:
    """Rows from a memory map, a `.npy` or Parquet path, a folder of Parquet files or a list of them; else None.

    Raises a `MixwellError` where there is no such file, or it holds no table of numbers.
    """
    if isinstance(source, np.memmap):
        # a private copy's changes are not on disk; small ones (joblib makes them of arrays) are read as arrays
        large = source.mode != "c" and source.nbytes > IN_MEMORY_BYTES
        return MemmapRows(source) if large and _streamable(source) else None
    paths = _paths(source)
    if paths is None:
        return None
    for path in paths:
        if not path.exists():
            raise MixwellError(f"{path} does not exist; expected a Parquet file, a folder of them, or a .npy file.")
    if len(paths) > 1:
        return ParquetRows(paths)
    only = paths[0]
    if only.is_dir():
        return ParquetRows(_parquet_files(only))
    if only.suffix == ".npy":
        return _open_npy(only)
    return ParquetRows(paths)


def _paths(source: Any) -> list[Path] | None:
    """The paths that a source names; None where it is something else."""
    if isinstance(source, (str, Path)):
        return [Path(source)]
    if not isinstance(source, (list, tuple)) or len(source) == 0:
        return None
    if not all(isinstance(path, (str, Path)) for path in source):
        return None
    return [Path(path) for path in source]


def _parquet_files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise MixwellError(f"{folder} holds no .parquet file.")
    return paths


def _open_npy(path: Path) -> Rows:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise MixwellError(f"cannot read {path} as a .npy file of numbers: {error}.") from error
    if not _streamable(mapped):
        raise MixwellError(f"{path} holds {mapped.dtype} of shape {mapped.shape}; expected a 2-D C-ordered "
                           "float32 or float64 array.")
    return MemmapRows(mapped)


def _streamable(x: np.memmap) -> bool:
    if x.ndim != 2 or x.dtype not in (np.float32, np.float64):
        return False
    return x.flags.c_contiguous and x.filename is not None


def imputed(x_ND: Tensor) -> Tensor:
    """Column means in place of missing values: good enough to start from."""
    if not _has_nan(x_ND):
        return x_ND
    missing_ND = torch.isnan(x_ND)
    mean_D = torch.nanmean(x_ND, 0)
    return torch.where(missing_ND, mean_D, x_ND)


def tensor_rows(x: Tensor, allow_nan: bool) -> Rows:
    """Rows of a tensor, or a `ValueError` that says what is wrong with it."""
    if x.ndim != 2:
        raise ValueError(f"Expected 2D tensor, got {x.ndim}D tensor instead; reshape it to (rows, columns).")
    if x.is_complex() or x.is_sparse:
        raise ValueError(f"expected a dense tensor of real numbers, got {x.dtype} ({x.layout}).")
    x = x.detach()
    if x.dtype not in (torch.float32, torch.float64):
        x = x.double()
    rows = ArrayRows(x)
    refused = x.isinf() if allow_nan else ~x.isfinite()
    if bool(refused.any()):
        locate_infinite(rows)
    return rows


def column_name(names: Sequence[str] | None, column: int) -> str:
    """What an error calls a column: its name in quotes, or its number."""
    if names is None:
        return str(column)
    return repr(names[column])


def refuse_infinite(chunk: Tensor, start: int, names: Sequence[str] | None, allow_nan: bool) -> None:
    """`ValueError` that names the first value which no density can take, if there is one."""
    refused = chunk.isinf() if allow_nan else ~chunk.isfinite()
    found = refused.nonzero()
    if not len(found):
        return
    row, column = found[0].tolist()
    what = "NaN" if math.isnan(chunk[row, column]) else "infinity"
    raise ValueError(f"Input X contains {what}: row {start + row}, column {column_name(names, column)}. Remove or "
                     "replace it.")


def locate_infinite(rows: Rows) -> None:
    """`ValueError` that says why a log-likelihood is not finite."""
    for start, chunk in rows.chunks():
        refuse_infinite(chunk, start, rows.names, allow_nan=False)
    raise ValueError("the log-likelihood is not finite; scale the input data or increase reg_covar.")
