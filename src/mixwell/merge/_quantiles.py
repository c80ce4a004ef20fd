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
        high = (keys(piece) >> 16) + HALF // 2
        counts += torch.bincount(high, minlength=HALF)
    ends = counts.cumsum(0)
    rows = [int(torch.searchsorted(ends, rank, right=True)) for rank in ranks]
    inner = {row: torch.zeros(HALF, dtype=torch.int64) for row in rows}
    for piece in stream():
        found = keys(piece)
        high = (found >> 16) + HALF // 2
        for row, count in inner.items():
            low = found[high == row] & (HALF - 1)
            count += torch.bincount(low, minlength=HALF)
    return [_within(inner[row], rank - int(ends[row] - counts[row]), row) for row, rank in zip(rows, ranks)]


def _within(counts: Tensor, rank: int, row: int) -> float:
    """The number at a rank among those whose upper half is that of `row`."""
    low = int(torch.searchsorted(counts.cumsum(0), rank, right=True))
    return number((row - HALF // 2) * HALF + low)
