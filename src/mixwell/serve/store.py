"""Numbers of many positions, a slot each, as they are or in few bits.

A vector of a position and head is rounded to whole multiples of its largest magnitude over 127 (8 bits) or 7 (4 bits).
What was rounded is read back the same for whoever reads it, so that an answer hangs on no one else.

Legend: G key/value heads, P head width, T positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = (8, 4)
Place = slice | Tensor  # slots


class Plain:
    """Vectors [G, slots, P] as they are."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.held = torch.empty(shape, dtype=dtype)

    def put(self, place: Place, new_GTP: Tensor) -> None:
        """Write vectors into slots."""
        _put(self.held, place, new_GTP)

    def get(self, place: Place) -> Tensor:
        """The vectors of slots [G, T, P]."""
        return _get(self.held, place)


class Rounded:
    """Vectors [G, slots, P] in 8 or 4 bits, two codes of 4 in a byte, with a scale each."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, bits: int) -> None:
        G, slots, P = shape
        self.dtype, self.bits, self.width = dtype, bits, P
        kept = P if bits == 8 else -(-P // 2)
        self.codes = torch.empty((G, slots, kept), dtype=torch.int8)
        self.scale = torch.empty((G, slots, 1))

    def put(self, place: Place, new_GTP: Tensor) -> None:
        """Round vectors into slots."""
        most = 2 ** (self.bits - 1) - 1
        largest = new_GTP.abs().amax(-1, keepdim=True).float()
        scale = largest / most
        step = scale.clamp_min(torch.finfo(torch.float32).tiny)
        codes = (new_GTP / step).round().to(torch.int8)
        _put(self.scale, place, scale)
        _put(self.codes, place, codes if self.bits == 8 else _paired(codes))

    def get(self, place: Place) -> Tensor:
        """The vectors of slots [G, T, P], as they were rounded."""
        codes = _get(self.codes, place)
        if self.bits == 4:
            codes = _apart(codes)[..., : self.width]
        scale = _get(self.scale, place)
        return (codes * scale).to(self.dtype)


def bytes_of(shape: tuple[int, int], dtype: torch.dtype, bits: int | None) -> int:
    """Bytes that a position's vectors [G, P] take."""
    G, P = shape
    if bits is None:
        return G * P * dtype.itemsize
    codes = P if bits == 8 else -(-P // 2)
    return G * (codes + torch.float32.itemsize)


def _put(held: Tensor, place: Place, new: Tensor) -> None:
    if isinstance(place, slice):
        held[:, place] = new
    else:
        held.index_copy_(1, place, new.to(held.dtype))


def _get(held: Tensor, place: Place) -> Tensor:
    if isinstance(place, slice):
        return held[:, place]
    return held.index_select(1, place)


def _paired(codes: Tensor) -> Tensor:
    """Codes -8 to 7 two in a byte, the even ones in the lower half."""
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    low, high = codes[..., ::2], codes[..., 1::2]
    return (high << 4) | (low & 15)


def _apart(bytes_GTQ: Tensor) -> Tensor:
    """The codes of bytes, in order."""
    low = bytes_GTQ << 4 >> 4  # with its sign
    both = torch.stack([low, bytes_GTQ >> 4], -1)
    return both.flatten(-2)
