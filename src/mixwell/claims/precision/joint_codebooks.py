"""JLCM: words and mappings learned together leave outputs closer at two bits than rounding learned on a grid.

Paper: Network Memory Footprint Compression Through Jointly Learnable Codebooks and Mappings.
Tried: a matrix of 128 x 64 normal numbers on images of digits, 897 to look at and 900 held out; two bits and a scale a
row on both sides, 300 steps, three rates of learning each. Beside: the words of k-means before they are learned, and
GPTQ.
Against it: a share of the outputs' squares lost that is no lower on held-out images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.precision._layers import lost, moments
from mixwell.core.rng import generator
from mixwell.precision import gptq, joint_codebooks, learned_rounding

ROWS, SEEN, STEPS = 128, 897, 300


def layer(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix, and the second moments of images to look at and of those held out."""
    from sklearn.datasets import load_digits

    draws = generator(seed, "joint_codebooks")
    images = torch.from_numpy(load_digits().data)
    count, width = images.shape
    order = torch.randperm(count, generator=draws)
    mixed = images[order]
    seen, held = mixed.tensor_split([SEEN])
    weight = torch.randn(ROWS, width, generator=draws)
    return weight, moments(seen), moments(held)


def together(bench: Bench, seed: int, **options: Any) -> float:
    """Words and mappings."""
    weight, seen, held = layer(seed)
    config = joint_codebooks.Config(bits=2, **options)
    draws = generator(seed, "words")
    coded = joint_codebooks.encode(weight, seen, config, draws)
    return lost(coded, weight, held)


def on_a_grid(bench: Bench, seed: int, **options: Any) -> float:
    """Learned rounding."""
    weight, seen, held = layer(seed)
    given = {"bits": 2, "group_size": 0, "steps": STEPS}
    config = learned_rounding.Config(**given, **options)
    coded = learned_rounding.encode(weight, seen, config)
    return lost(coded, weight, held)


def carried(bench: Bench, seed: int) -> float:
    """GPTQ."""
    weight, seen, held = layer(seed)
    config = gptq.Config(bits=2, group_size=0)
    coded = gptq.encode(weight, seen, config)
    return lost(coded, weight, held)


CLAIM = Claim(
    "Words and mappings learned together are closer than learned rounding.", "share of the outputs' squares lost",
    sides={
        "method": Side(together, {"steps": STEPS}, {"lr": [0.02, 0.05, 0.15]}),
        "baseline": Side(on_a_grid, {}, {"lr": [0.01, 0.02, 0.05]}),
        "k-means": Side(together, {"steps": 0}),
        "gptq": Side(carried),
    },
)
