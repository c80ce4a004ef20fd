"""Multi-level training: a model that went down and up again is better than one trained at full size for equal FLOPs.

Paper: A Multi-Level Framework for Accelerating Training Transformer Models.
Tried: the bench's decoder of four layers with dense blocks of width 128: 40,000 tokens, halved in width and depth,
160,000 tokens, doubled with share 0.5, and as many tokens more as a training of 200,000 at full size has FLOPs left,
against that training. Both at the same rate. Beside: share 1, whose twins stay alike. Against it: bits per byte that
are no lower.
"""

from __future__ import annotations

from mixwell.claims._conversions import WIDTH, bits, made, tuned
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.language import dense
from mixwell.core.checkpoint import Checkpoint
from mixwell.lm.model import LanguageModel

CLAIM = Claim("A V-cycle beats training at full size for equal FLOPs.", BITS)
WHOLE, FIRST, SMALL = 200_000, 40_000, 160_000  # tokens
RATE = 4e-3


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte after equal FLOPs."""
    arch = {**dense(bench, 128), "num_layers": 4}
    large = bench.train(arch, seed, tokens=FIRST, lr=RATE).model.to_checkpoint()
    halved = made(bench, "multi_level", large, seed, {})
    small = tuned(bench, halved, seed, tokens=SMALL, lr=RATE)
    left = WHOLE - FIRST - round(SMALL * flops(halved) / flops(large))
    mixed = made(bench, "multi_level", small, seed, {"way": "up", "share": 0.5, "before": "large"},
                 models=lambda name: large)
    alike = made(bench, "multi_level", small, seed, {"way": "up", "share": 1.0})
    starts = {"method": mixed, "twins alike": alike}
    ends = {name: tuned(bench, start, seed, tokens=left, lr=RATE) for name, start in starts.items()}
    throughout = bench.train(arch, seed, tokens=WHOLE, lr=RATE)
    found = {name: bits(bench, end) for name, end in ends.items()}
    return {**found, "baseline": throughout.bits_per_byte}


def flops(checkpoint: Checkpoint) -> float:
    """Forward FLOPs of a token in the windows of the trainings."""
    model = LanguageModel.from_checkpoint(checkpoint)
    return model.flops_per_token(WIDTH)
