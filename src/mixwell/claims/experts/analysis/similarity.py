"""Experts grow less alike with depth, the last layer excepted.

Paper: A Closer Look into Mixture-of-Experts in Large Language Models.
Tried: the bench's language model with four layers, top-2 of eight experts; mean cosine of the experts' gate matrices,
third layer against first. Against it: a cosine in the third layer that is no lower.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._methods import call
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.language import DEEP, from_trunk


def likeness(model: Any) -> list[float]:
    """Mean cosine between experts' gate matrices in each layer."""
    found = []
    for layer in model.layers:
        mixer = layer.channel_mixer
        cosines = call("experts.analysis.similarity", mixer.gate_up_proj, mixer.down_proj)
        found.append(cosines["gate"]["mean"])
    return found


CLAIM = Claim("Experts grow less alike with depth.",
              "mean cosine of experts' gate matrices, third layer against first")


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Likeness of experts in the third layer against the first."""
    trained = from_trunk(bench, seed, **DEEP)
    first, second, third, last = likeness(trained.model)
    return {"method": third, "baseline": first, "second layer": second, "last layer": last}
