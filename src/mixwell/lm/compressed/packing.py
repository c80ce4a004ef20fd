"""Codes in words of 32 bits: one stream of bits along each row, lowest bits first, its last word filled with zeros.

Legend: R rows, I codes in a row, W words of a row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORD = 4  # bytes
_LITTLE = np.dtype("<i4")


def words_of(count: int, bits: int) -> int:
    """Words that `count` codes of `bits` bits take."""
    return -(-count * bits // (8 * WORD))


def packed(codes_RI: Tensor, bits: int) -> Tensor:
    """Codes uint8 [R, I] below 2^bits as int32 [R, W]."""
    count = codes_RI.shape[-1]
    single = codes_RI.contiguous().unsqueeze(-1)
    bits_RIb = np.unpackbits(single.numpy(), axis=-1, count=bits, bitorder="little")
    stream = bits_RIb.reshape(-1, count * bits)
    octets = np.packbits(stream, axis=-1, bitorder="little")
    room = words_of(count, bits) * WORD
    missing = room - octets.shape[-1]
    filled = np.pad(octets, ((0, 0), (0, missing)))
    words = filled.view(_LITTLE)
    native = words.astype(np.int32)
    return torch.from_numpy(native)


def unpacked(words_RW: Tensor, bits: int, count: int) -> Tensor:
    """The codes uint8 [R, count] that int32 [R, W] hold."""
    native = words_RW.contiguous().numpy()
    words = native.astype(_LITTLE)
    octets = words.view(np.uint8)
    stream = np.unpackbits(octets, axis=-1, count=count * bits, bitorder="little")
    bits_RIb = stream.reshape(-1, count, bits)
    codes_RI1 = np.packbits(bits_RIb, axis=-1, bitorder="little")
    codes = torch.from_numpy(codes_RI1)
    return codes.squeeze(-1)
