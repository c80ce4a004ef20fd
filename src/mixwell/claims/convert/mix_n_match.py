"""Mix'n'Match: a quarter of a nested model is better than a quarter of a model that was not trained nested.

Paper: MatFormer: Nested Transformer for Elastic Inference.
Tried: the bench's decoder with nested blocks of width 256 after 200,000 tokens, cut to 64 units, against the dense
model of that width and those tokens, cut alike. Beside: 128 units below, 64 above. Against it: bits per byte that are
no lower.
"""

from __future__ import annotations

from mixwell.claims._conversions import TOKENS, bits, dense_start, made
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("A quarter of a nested model beats a quarter of a dense one.", BITS)
NESTED = {"method": "experts.layers.matformer", "hidden_dim": 256, "factors": [1, 2, 4]}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of the models cut out."""
    trained = bench.train(bench.arch(channel_mixer=NESTED), seed, tokens=TOKENS)
    nested = trained.model.to_checkpoint()
    dense = dense_start(bench, seed)
    small = made(bench, "mix_n_match", nested, seed, {"widths": 64})
    mixed = made(bench, "mix_n_match", nested, seed, {"widths": [128, 64]})
    cut = made(bench, "mix_n_match", dense, seed, {"widths": 64})
    return {"method": bits(bench, small), "baseline": bits(bench, cut), "mixed widths": bits(bench, mixed)}
