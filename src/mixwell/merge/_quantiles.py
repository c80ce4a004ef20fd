"""The k-th smallest number of a stream that is too long for memory, exactly, in two passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Stream = Callable[[], Iterator[Tensor]]
HALF = 2**16
_SIGN = 2**31 - 1


def keys(numbers: Tensor) -> Tensor:
    """float32 numbers as whole ones of the same order."""
    bits = numbers.reshape(-1).to(torch.float32).view(torch.int32)
    return bits ^ ((bits >> 31) & _SIGN)


def number(key: int) -> float:
    """The float32 number that a key stands for."""
    bits = key if key >= 0 else key ^ _SIGN
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


def smallest(stream: Stream, ranks: Sequence[int]) -> list[float]:
    """The numbers at these ranks, 0 being the least, of all that the stream yields when it is called."""
    counts = torch.zeros(HALF, dtype=torch.int64)
    for piece in stream():
        high, _ = halves(piece)
        counts += torch.bincount(high, minlength=HALF)
    rows = [_row(counts, rank) for rank in ranks]
    inner = {row: torch.zeros(HALF, dtype=torch.int64) for row, _ in rows}
    for piece in stream():
        high, low = halves(piece)
        for row, found in inner.items():
            found += torch.bincount(low[high == row], minlength=HALF)
    return [_number(inner[row], row, rest) for row, rest in rows]


def halves(piece: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and the lower 16 bits of keys, from 0 on."""
    found = keys(piece)
    high = found >> 16
    low = found & (HALF - 1)
    return high + HALF // 2, low


def _row(counts: Tensor, rank: int) -> tuple[int, int]:
    """(where the number at `rank` is counted, its rank among those counted there)."""
    ends = counts.cumsum(0)
    row = int(torch.searchsorted(ends, rank, right=True))
    before = int(ends[row] - counts[row])
    return row, rank - before


def _number(counts: Tensor, row: int, rank: int) -> float:
    """The number at a rank among those whose upper half is that of `row`."""
    low, _ = _row(counts, rank)
    high = row - HALF // 2
    return number(high * HALF + low)
