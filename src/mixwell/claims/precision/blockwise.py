"""BCT: a power of two a block loses less than a scale a tensor, at an eighth of the size and without training.

Paper: Blockwise Compression of Transformer-based Models without Retraining.
Tried: a matrix of 256 x 256 normal numbers with four channels 30 times as large, whose inputs are as much smaller, 2000
rows; four bits, blocks of 16 x 64 with an exponent each (4.008 bits a number, 7.98 times smaller than float32) against
four bits with one scale, no power of two, for the tensor. Beside: a scale a row (4.06 bits), and blocks of 1 x 32
(4.25 bits).
Against it: a share of the outputs' squares lost that is no lower.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._layers import moments, plain, squares
from mixwell.core.rng import generator
from mixwell.precision import blockwise, integers

CLAIM = Claim("A power of two a block loses less than a scale a tensor.", "share of the outputs' squares lost")
WIDTH, ROWS, LARGER = 256, 2000, 30.0


def one_scale(weight: Tensor) -> Tensor:
    """Four bits, one scale for all numbers."""
    step = weight.abs().max() / 7
    steps = (weight / step).round()
    return steps * step


def in_blocks(weight: Tensor, **options: Any) -> Tensor:
    """Four bits in blocks."""
    config = blockwise.Config(**options)
    coded = blockwise.encode(weight, config)
    return plain(coded)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """The share that each side loses."""
    draws = generator(seed, "blockwise")
    weight = torch.randn(WIDTH, WIDTH, generator=draws)
    x = torch.randn(ROWS, WIDTH, generator=draws)
    order = torch.randperm(WIDTH, generator=draws)
    apart = order[:4]
    weight[:, apart] *= LARGER
    x[:, apart] /= LARGER
    seen = moments(x)
    by_row = integers.encode(weight, integers.Config(group_size=0))
    sides = {
        "method": in_blocks(weight, rows=16, group_size=64),
        "baseline": one_scale(weight),
        "rows": plain(by_row),
        "small": in_blocks(weight, rows=1, group_size=32),
    }
    whole = squares(weight, seen)
    return {side: squares(rounded - weight, seen) / whole for side, rounded in sides.items()}
