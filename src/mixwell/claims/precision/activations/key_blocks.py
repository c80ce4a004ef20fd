"""K-sort: with channels of like size side by side, keys in blocks of four bits leave scores closer.

Paper: Accurate Block Quantization in LLMs with Outliers.
Tried: 512 keys of a head of 128 channels whose sizes are log-normal, 512 queries whose channels are as much smaller as
those of keys are larger; mantissas of four bits in blocks of 32, sorted against as they come. Beside: queries of
one size in all channels, with which little is to be gained.
Against it: a share of the scores' squares lost that is not smaller by a half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.rng import generator
from mixwell.precision.activations.key_blocks import Config, rounded_keys

CLAIM = Claim("Sorting channels halves what scores lose at least.", "share of the scores' squares lost", at_least=0.5,
              relative=True)
WIDTH, ROWS = 128, 512


def lost(keys: Tensor, queries: Tensor, sizes: Tensor, sort: bool) -> float:
    """The share of the scores' squares that is lost."""
    config = Config(sort=sort)
    found = rounded_keys(keys[None, None], sizes[None], config)
    change = found[0, 0] - keys
    wrong, whole = change @ queries.T, keys @ queries.T
    share = wrong.square().sum() / whole.square().sum()
    return float(share)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Sorted and as they come, for both kinds of queries."""
    draws = generator(seed, "key_blocks")
    logs = torch.randn(WIDTH, generator=draws)
    sizes = logs.exp()
    keys = torch.randn(ROWS, WIDTH, generator=draws) * sizes
    even = torch.randn(ROWS, WIDTH, generator=draws)
    against = even / sizes
    return {
        "method": lost(keys, against, sizes, True),
        "baseline": lost(keys, against, sizes, False),
        "even sorted": lost(keys, even, sizes, True),
        "even as they come": lost(keys, even, sizes, False),
    }
