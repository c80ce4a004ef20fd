"""Speed-up: a mixture reaches the loss of dense models that took more training FLOPs.

Paper: Efficient Large Scale Language Modeling with Mixtures of Experts.
Tried: the bench's mixture (top-2 of eight experts of 64) and dense blocks of 32, 128 and 512 units, each put into the
trunk and trained on 300,000 tokens; the factor of the paper, the FLOPs of the dense model of the mixture's loss over
the mixture's own. Against it: a factor of 1 or below; no outcome where the mixture's loss is outside the dense ones.
"""

from __future__ import annotations

import math

import numpy as np

from mixwell.claims.bench import Bench, Trained
from mixwell.claims.claim import Claim, Untestable
from mixwell.claims.language import block, from_trunk
from mixwell.scaling.laws.speed_up import speed_up

CLAIM = Claim("Mixtures need fewer training FLOPs.", "dense FLOPs over the mixture's", baseline=1.0,
              lower_is_better=False)
WIDTHS = (32, 128, 512)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """The factor; `Untestable` where the mixture is better or worse than all dense models."""
    trained = [from_trunk(bench, seed, mixer=block(width)) for width in WIDTHS]
    mixture = from_trunk(bench, seed)
    line, own = columns(trained), columns([mixture])
    factor = float(speed_up(line, own)[0])
    if math.isnan(factor):
        bits = mixture.bits_per_byte
        known = np.round(line["loss"], 3)
        raise Untestable(f"the mixture's {bits:.3f} bits per byte lie outside the dense models' {known}.")
    return {"method": factor}


def columns(models: list[Trained]) -> dict[str, list[float]]:
    """FLOPs and loss of some models."""
    flops = [one.flops for one in models]
    losses = [one.bits_per_byte for one in models]
    return {"flops": flops, "loss": losses}
