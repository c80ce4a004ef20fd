"""Numbers in GGML's types: rows of floats to the bytes that llama.cpp reads, rounded as its reference does.

Legend: N blocks of `BLOCK` neighbours in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32  # numbers that share a scale
LARGEST = 65504.0  # of float16
_BELOW_HALF = torch.tensor(0.49999997)


@dataclass(frozen=True)
class Kind:
    """One of GGML's types."""

    number: int  # GGML's own
    file_type: int  # general.file_type of a file whose matrices are of it
    block: int  # numbers of a block
    width: int  # bytes of a block
    encode: Callable[[Tensor], Tensor]  # float32 [N, block] -> uint8 [N, width]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of a number, its share of the scales included."""
        return 8.0 * self.width / self.block


def _bytes(numbers_NX: Tensor) -> Tensor:
    return numbers_NX.contiguous().view(torch.uint8)


def _f32(x_N1: Tensor) -> Tensor:
    return _bytes(x_N1)


def _f16(x_N1: Tensor) -> Tensor:
    return _bytes(_half(x_N1))


def _bf16(x_N1: Tensor) -> Tensor:
    return _bytes(x_N1.to(torch.bfloat16))


def _half(x: Tensor) -> Tensor:
    """float16; what it cannot hold raises ValueError."""
    halved = x.to(torch.float16)
    beyond = halved.isinf()
    if bool(beyond.any()):
        first = float(x[beyond][0])
        raise ValueError(f"{first:g} is beyond float16, whose largest number is {LARGEST:g}; write bf16 or f32")
    return halved


def _inverse(step_N1: Tensor) -> Tensor:
    """1 / step, and 0 for the step of a block of equal numbers."""
    inverse_N1 = step_N1.reciprocal()
    return inverse_N1.masked_fill_(step_N1 == 0, 0.0)


def _nudged(x: Tensor) -> Tensor:
    """x moved away from zero by a half, so that cutting its digits rounds it as C's roundf does.

    The half is the largest number below one: the number below 1/2 would otherwise reach 1 by the rounding of the sum.
    """
    half = torch.copysign(_BELOW_HALF, x)
    return x.add_(half)


def _q8_0(x_NB: Tensor) -> Tensor:
    sizes_NB = x_NB.abs()
    step_N1 = sizes_NB.amax(1, keepdim=True).div_(127)
    inverse_N1 = _inverse(step_N1)
    torch.mul(x_NB, inverse_N1, out=sizes_NB)  # in the memory of the sizes, which the cache still holds
    scaled_NB = _nudged(sizes_NB)
    count = len(x_NB)
    out = torch.empty(count, 2 + BLOCK, dtype=torch.uint8)
    halved = _half(step_N1)
    scale, codes = out.split([2, BLOCK], dim=1)
    scale.copy_(_bytes(halved))
    codes.view(torch.int8).copy_(scaled_NB)
    return out


def _codes(x_NB: Tensor, step_N1: Tensor, shift: float) -> Tensor:
    """Codes 0 to 15 of x / step + shift, cut downwards: uint8. The sum is rounded once, as by a fused instruction."""
    wide_NB = x_NB.double() * _inverse(step_N1).double()
    rounded_NB = wide_NB.add_(shift).float()
    return rounded_NB.trunc_().clamp_(0, 15).to(torch.uint8)


def _nibbles(codes_NB: Tensor) -> Tensor:
    """Two codes a byte: byte j holds code j below and code j + 16 above."""
    low, high = codes_NB.split(BLOCK // 2, dim=1)
    return low | (high << 4)


def _q4_0(x_NB: Tensor) -> Tensor:
    sizes_NB = x_NB.abs()
    at_N1 = sizes_NB.argmax(dim=1, keepdim=True)
    largest_N1 = x_NB.gather(1, at_N1)
    step_N1 = largest_N1.div_(-8)
    codes_NB = _codes(x_NB, step_N1, 8.5)
    halved = _half(step_N1)
    scale = _bytes(halved)
    return torch.cat([scale, _nibbles(codes_NB)], dim=1)


def _q4_1(x_NB: Tensor) -> Tensor:
    least_N, most_N = x_NB.aminmax(dim=1)
    least_N1 = least_N.unsqueeze(1)
    step_N = (most_N - least_N).div_(15)
    step_N1 = step_N.unsqueeze(1)
    above_NB = x_NB - least_N1
    codes_NB = _codes(above_NB, step_N1, 0.5)
    halves = _half(step_N1), _half(least_N1)
    scales = map(_bytes, halves)
    return torch.cat([*scales, _nibbles(codes_NB)], dim=1)


KINDS: dict[str, Kind] = {
    "f32": Kind(0, 0, 1, 4, _f32),
    "f16": Kind(1, 1, 1, 2, _f16),
    "bf16": Kind(30, 32, 1, 2, _bf16),
    "q8_0": Kind(8, 7, BLOCK, 34, _q8_0),
    "q4_0": Kind(2, 2, BLOCK, 18, _q4_0),
    "q4_1": Kind(3, 3, BLOCK, 20, _q4_1),
}
