"""The number at a rank of many, exactly: a sample says between which two it lies; only those between are ordered."""

from __future__ import annotations

import numpy as np

SAMPLE, SMALL = 2**16, 2**20  # numbers that are looked at first; numbers that are ordered at once
SLACK = 0.02  # share of the sample on both sides of the place


def at_rank(numbers: np.ndarray, rank: int) -> np.floating:
    """The number at `rank` in ascending order, 0 being the least."""
    if numbers.size <= SMALL:
        return np.partition(numbers, rank)[rank]
    low, high = _bounds(numbers, rank / numbers.size)
    inside = numbers >= low
    below = numbers.size - np.count_nonzero(inside)
    inside &= numbers <= high
    between = numbers[inside]
    place = rank - below
    if not 0 <= place < between.size:
        return np.partition(numbers, rank)[rank]
    return np.partition(between, place)[place]


def _bounds(numbers: np.ndarray, share: float) -> tuple[np.floating, np.floating]:
    """Two numbers between which that of this share of the whole is likely to lie."""
    step = numbers.size // SAMPLE
    sample = np.sort(numbers[::step])
    place = share * sample.size
    slack = SLACK * sample.size
    low = max(0, int(place - slack))
    high = min(sample.size - 1, int(place + slack))
    least = sample[low] if low else numbers.min()
    most = sample[high] if high < sample.size - 1 else numbers.max()
    return least, most
