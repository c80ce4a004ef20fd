"""Checksums of tensors: they tell flipped bits, lost and swapped pieces, another type or shape from what was written.

The sum is that of the 8-byte words, each times an odd factor of its own, modulo 2^64. It is quick enough to be taken
whenever a tensor is read, and no signature: somebody who wants to can make another tensor of the same sum.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError

KEY = "mixwell.sums"  # in the metadata of a file; whoever writes the file anew drops it with the old tensors
PIECE_BYTES = 2**18  # what is summed in one go, while it lies in the processor's cache
_MODULUS, _DIGITS = 2**64, 16


class Sum:
    """The checksum of one tensor, piece by piece; all pieces but the last have `PIECE_BYTES`."""

    def __init__(self, tensor: Tensor) -> None:
        form = f"{tensor.dtype} {list(tensor.shape)}"
        self._total = zlib.crc32(form.encode())
        self._pieces = 0

    def add(self, piece: Tensor) -> None:
        """Count the next piece in, one-dimensional."""
        raw = piece.view(torch.uint8)
        whole = raw.numel() // 8 * 8
        words = _words(raw[:whole])
        factors = _factors()[: words.numel()]
        rest = bytes(raw[whole:].tolist())
        value = int(torch.dot(words, factors))
        value += int.from_bytes(rest, "little")
        self._pieces += 1
        self._total += value * (2 * self._pieces + 1)

    @property
    def value(self) -> int:
        """The sum so far, 0 to 2^64 - 1."""
        return self._total % _MODULUS


def _words(raw: Tensor) -> Tensor:
    """Bytes as words; those that do not begin where a word may are copied."""
    offsets = raw.storage_offset(), raw.data_ptr()
    aligned = all(offset % 8 == 0 for offset in offsets)
    placed = raw if aligned else raw.clone()
    return placed.view(torch.int64)


@functools.cache
def _factors() -> Tensor:
    """Odd numbers that look random, the same for ever: multiples of the golden ratio's, by Weyl."""
    count = PIECE_BYTES // 8
    steps = torch.arange(1, count + 1, device="cpu")  # kept, whatever device its first caller builds on
    mixed = steps * -7046029254386353131  # 2^64 / golden ratio, as a signed number
    mixed = (mixed ^ (mixed >> 29)) * -4658895280553007687
    return mixed | 1


def of(tensor: Tensor) -> int:
    """The checksum of a tensor on the CPU."""
    total = Sum(tensor)
    flat = tensor.contiguous().view(-1)
    size = PIECE_BYTES // flat.element_size()
    for piece in flat.split(size):
        total.add(piece)
    return total.value


def packed(sums: Iterable[int]) -> str:
    """Sums as text, in the order of their tensors' names."""
    digits = [f"{value:0{_DIGITS}x}" for value in sums]
    return "".join(digits)


def unpacked(text: str, names: Collection[str], where: str) -> dict[str, int]:
    """The sums of `names`, from what `packed` gave."""
    starts = range(0, len(text), _DIGITS)
    try:
        values = [int(text[start : start + _DIGITS], 16) for start in starts]
    except ValueError as error:
        raise MixwellError(f"{where}: {KEY} in its header is not made of digits; copy it again.") from error
    if len(values) != len(names):
        raise MixwellError(f"{where}: {KEY} in its header is of {len(values)} tensors, the file has {len(names)}; copy "
                           "it again.")
    return dict(zip(sorted(names), values))
