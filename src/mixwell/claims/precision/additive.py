"""AQLM: sums of learned words leave outputs closer at two bits than integers whose errors are carried forward.

Paper: Extreme Compression of Large Language Models via Additive Quantization.
Tried: a matrix of 128 x 128 normal numbers, inputs whose variances fall as 1 / k along random directions, 1000 rows
to look at and 1000 held out; two codebooks of 16 words of 4 numbers (2.25 bits a weight, books and scales counted)
against GPTQ at two bits in groups of 64 (2.25 bits, too). Beside: rounding to nearest, and the same words before they
are learned.
Against it: a share of the outputs' squares lost that is no lower on held-out rows.
"""

from __future__ import annotations

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._layers import falling, lost, moments
from mixwell.core.rng import generator
from mixwell.precision import additive, gptq, integers

CLAIM = Claim("Sums of words at two bits are closer than GPTQ's integers.", "share of the outputs' squares lost")
WIDTH, ROWS = 128, 1000
WORDS = additive.Config(code_bits=4, piece=4, rounds=4)
CARRIED, NEAREST = gptq.Config(bits=2), integers.Config(bits=2)
FIRST = additive.Config(code_bits=4, piece=4, rounds=0)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """The share that each side loses."""
    draws = generator(seed, "additive")
    weight = torch.randn(WIDTH, WIDTH, generator=draws)
    rows = falling(draws, 2 * ROWS, WIDTH)
    halves = rows.chunk(2)
    seen, held = map(moments, halves)
    coded = {}
    coded["method"] = additive.encode(weight, seen, WORDS, draws)
    coded["baseline"] = gptq.encode(weight, seen, CARRIED)
    coded["nearest"] = integers.encode(weight, NEAREST)
    coded["before"] = additive.encode(weight, seen, FIRST, draws)
    return {side: lost(own, weight, held) for side, own in coded.items()}
