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
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.rng import generator
from mixwell.precision import additive, gptq, integers
from mixwell.precision._parts import Coded
from mixwell.precision._statistics import output_error

CLAIM = Claim("Sums of words at two bits are closer than GPTQ's integers.", "share of the outputs' squares lost")
WIDTH, ROWS = 128, 1000


def inputs(draws: torch.Generator) -> Tensor:
    """Rows [2 ROWS, WIDTH] whose variances fall as 1 / k along random directions."""
    mixing = torch.randn(WIDTH, WIDTH, generator=draws, dtype=torch.float64)
    turned, _ = torch.linalg.qr(mixing)
    rows = torch.randn(2 * ROWS, WIDTH, generator=draws, dtype=torch.float64)
    sizes = torch.arange(1, WIDTH + 1).rsqrt()
    return (rows * sizes) @ turned


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """The share that each side loses."""
    draws = generator(seed, "additive")
    weight = torch.randn(WIDTH, WIDTH, generator=draws)
    seen, held = inputs(draws).chunk(2)
    moments, fresh = seen.T @ seen / ROWS, held.T @ held / ROWS
    words = additive.Config(code_bits=4, piece=4, rounds=4)
    first = additive.Config(code_bits=4, piece=4, rounds=0)
    whole = output_error(weight, fresh)

    def lost(coded: Coded) -> float:
        change = coded.weight().dequantised(torch.float64) - weight
        return output_error(change, fresh) / whole

    return {
        "method": lost(additive.encode(weight, moments, words, draws)),
        "baseline": lost(gptq.encode(weight, moments, gptq.Config(bits=2))),
        "nearest": lost(integers.encode(weight, integers.Config(bits=2))),
        "before": lost(additive.encode(weight, moments, first, draws)),
    }
