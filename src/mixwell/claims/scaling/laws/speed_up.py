"""Speed-up: a mixture reaches the loss of dense models that took more training FLOPs.

Paper: Efficient Large Scale Language Modeling with Mixtures of Experts.
Tried: the bench's mixture and dense models of width 32, 64 and 96 on 300,000 tokens each; the factor of the paper, the
FLOPs of the dense model of the mixture's loss over the mixture's own. Against it: a factor of 1 or below, at a seed
where the mixture's loss lies among the dense models'.
"""

from __future__ import annotations

import math

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Untestable
from mixwell.claims.language import dense
from mixwell.scaling.laws.speed_up import speed_up

CLAIM = Claim("Mixtures need fewer training FLOPs.", "dense FLOPs over the mixture's", baseline=1.0,
              lower_is_better=False)
WIDTHS, TOKENS = (32, 64, 96), 300_000


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """The factor; `Untestable` where the mixture is better or worse than all dense models."""
    trained = [bench.train(dense(bench, width), seed, tokens=TOKENS) for width in WIDTHS]
    mixture = bench.train(bench.arch(), seed, tokens=TOKENS)
    line = {"flops": [one.flops for one in trained], "loss": [one.bits_per_byte for one in trained]}
    own = {"flops": [mixture.flops], "loss": [mixture.bits_per_byte]}
    factor = float(speed_up(line, own)[0])
    if math.isnan(factor):
        losses = np.round(line["loss"], 3)
        raise Untestable(f"the mixture's {own['loss'][0]:.3f} bits per byte lie outside the dense models' {losses}.")
    return {"method": factor}
