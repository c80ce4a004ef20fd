"""Nested blocks: a quarter of the width, trained inside the whole, is nearly as good as a twin trained alone.

Paper: MatFormer: Nested Transformer for Elastic Inference.
Tried: the bench's decoder with nested blocks of width 256 after 200,000 tokens, read at 64 units, against a dense model
of 64 units after as many tokens. A third of the nested one's steps saw that width alone. Against it: bits per byte that
are 3 % higher or more.
"""

from __future__ import annotations

from mixwell.claims._conversions import TOKENS, bits, dense_start, made
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.convert.mix_n_match import NESTED

CLAIM = Claim("A nested quarter is within 3 % of its twin trained alone.", BITS, at_least=-0.03, relative=True)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of the nested quarter and of its twin."""
    trained = bench.train(bench.arch(channel_mixer=NESTED), seed, tokens=TOKENS)
    nested = trained.model.to_checkpoint()
    quarter = made(bench, "mix_n_match", nested, seed, {"widths": 64})
    twin = dense_start(bench, seed, 64)
    return {"method": bits(bench, quarter), "baseline": bits(bench, twin)}
