"""Floats of 3 to 8 bits as tables of what their codes stand for.

A code is a sign, e bits of exponent and m of mantissa: (1 + f / 2^m) 2^(x - bias) for x above 0, and f / 2^m
2^(1 - bias) for x = 0, bias = 2^(e - 1) - 1 (at least 1). Nothing is kept for infinity; the one code of E4M3 that is no
number stands for its largest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixwell.precision._parts import Coded, by_table, grouped, positive

SPLIT = {3: (2, 0), 4: (2, 1), 5: (2, 2), 6: (3, 2), 7: (3, 3), 8: (4, 3)}  # bits -> exponent's, mantissa's


def table(bits: int) -> Tensor:
    """What each code stands for, rising, float32 [2^bits]; 0 is there twice. Raises ValueError for other bits."""
    if bits not in SPLIT:
        raise ValueError(f"floats of {bits} bits are none; expected {min(SPLIT)} to {max(SPLIT)}")
    exponent, mantissa = SPLIT[bits]
    codes = range(2 ** (bits - 1))
    magnitudes = [_magnitude(code, exponent, mantissa) for code in codes]
    if bits == 8:
        magnitudes[-1] = magnitudes[-2]
    negative = [-value for value in magnitudes]
    both = sorted(magnitudes + negative)
    return torch.tensor(both)


def _magnitude(code: int, exponent: int, mantissa: int) -> float:
    middle = 2 ** (exponent - 1) - 1
    bias = max(1, middle)
    raised, fraction = divmod(code, 2**mantissa)
    part = fraction / 2**mantissa
    if raised == 0:
        return math.ldexp(part, 1 - bias)
    return math.ldexp(1 + part, raised - bias)


def nearest_float(weight: Tensor, bits: int, group_size: int) -> Coded:
    """A matrix rounded to the nearest floats of its groups, the largest magnitude of each at the largest float."""
    groups = grouped(weight, group_size)
    levels = table(bits).to(weight.device)
    largest = groups.abs().amax(-1)
    step = largest / levels.max()
    scale = positive(step.to(torch.bfloat16))
    unit = scale.to(groups.dtype)
    shares = groups / unit.unsqueeze(-1)
    middles = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(shares, middles.to(shares.dtype))
    return by_table(weight, codes, scale, levels)
