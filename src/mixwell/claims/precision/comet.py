"""FMPQ: with outliers gathered in few blocks, most inputs go to four bits and outputs stay close.

Paper: COMET: Towards Partical W4A4KV4 LLMs Serving.
Tried: 1024 rows of 512 channels, of which 15 at random places are 20 times as large, and a matrix of 512 x 512 normal
numbers, which stays whole; blocks of 32 channels sorted by what other 1024 rows hold, against four bits for all.
Beside: blocks as the channels come, and eight bits for all.
Against it: an error of outputs above a fifth of the baseline's, or fewer than 80 % of blocks at four bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.core.rng import generator
from mixwell.precision.comet import Config, encode

CLAIM = Claim(
    "Outliers in blocks of their own leave a fifth of the error of four bits.", "share of the outputs' squares lost",
    quantity="error", at_least=0.8, relative=True,
    provided=(Comparison(quantity="four bits", baseline=0.8, lower_is_better=False),))
WIDTH, ROWS, APART, LARGER = 512, 1024, 15, 20.0


def side(weight: Tensor, seen: Tensor, held: Tensor, **options: Any) -> dict[str, float]:
    """Error of outputs, and share of blocks at four bits."""
    config = Config(group_size=32, **options)
    largest = seen.abs().amax(0)
    coded = encode(weight, largest, config)
    assert coded.block_bits is not None
    few = coded.block_bits == 4
    change = coded.weight().inputs(held) - held
    wrong, whole = change @ weight.T, held @ weight.T
    error = wrong.square().sum() / whole.square().sum()
    return {"error": float(error), "four bits": float(few.double().mean())}


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Error and share of blocks at four bits of each side."""
    draws = generator(seed, "comet")
    weight = torch.randn(WIDTH, WIDTH, generator=draws)
    x = torch.randn(2 * ROWS, WIDTH, generator=draws)
    order = torch.randperm(WIDTH, generator=draws)
    apart = order[:APART]
    x[:, apart] *= LARGER
    seen, held = x.chunk(2)
    sides: dict[str, dict[str, Any]] = {"method": {}, "baseline": {"high": 4}}
    sides |= {"as they come": {"permute": False}, "eight": {"low": 8}}
    return {name: side(weight, seen, held, **options) for name, options in sides.items()}
