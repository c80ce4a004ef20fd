"""Flash-LLM: past half zeros its tiles are fewer bytes to read than dense float16.

Paper: Flash-LLM: Enabling Cost-Effective and Highly-Efficient Large Generative Model Inference with Unstructured
Sparsity.
Tried: random weights of 512 x 512 with 60 % zeros (the smallest sparsity that the paper measures), bytes that a product
reads against dense float16; beside, a bitmask with values and rows with int32 columns. Speed on a GPU is not tried.
Against it: as many bytes.
"""

from __future__ import annotations

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.rng import generator
from mixwell.precision.sparse.flash_llm import Config, beside, flash_llm

SHARE = 0.6
CLAIM = Claim("Tiles at 60 % zeros are fewer bytes than float16.", "bytes a weight", relative=True)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bytes a weight of every format."""
    draws = generator(seed, "flash_llm")
    weight = torch.randn(512, 512, generator=draws)
    there = torch.rand(512, 512, generator=draws) >= SHARE
    sparse = weight * there
    others = beside(sparse)
    stored = flash_llm(sparse, Config())
    dense = others.pop("dense")
    found = {"method": stored.size_bytes, "baseline": dense, **others}
    return {side: size / weight.numel() for side, size in found.items()}
