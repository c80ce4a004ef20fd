"""Experts grow less alike with depth, the last layer excepted.

Paper: A Closer Look into Mixture-of-Experts in Large Language Models.
Tried: the bench's language model with four layers, top-2 of eight experts; mean cosine of the experts' gate matrices,
third layer against first. Against it: a cosine in the third layer that is no lower.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._judging import beside
from mixwell.claims._methods import call
from mixwell.claims._series import columns
from mixwell.claims.bench import Bench
from mixwell.claims.language import DEEP, models
from mixwell.core.evidence import Evidence, weigh


def likeness(model: Any) -> list[float]:
    """Mean cosine between experts' gate matrices in each layer."""
    found = []
    for layer in model.layers:
        mixer = layer.channel_mixer
        cosines = call("experts.analysis.similarity", mixer.gate_up_proj, mixer.down_proj)
        found.append(cosines["gate"]["mean"])
    return found


def claim(bench: Bench) -> Evidence:
    """Likeness of experts in the third layer against the first."""
    deep = models(bench, bench.arch(**DEEP))
    first, second, third, last = columns(likeness(model) for model in deep)
    evidence = weigh("Experts grow less alike with depth.",
                     "mean cosine of experts' gate matrices, third layer against first", third, first,
                     note="Experts that start independent stay nearly so on 300,000 tokens: all cosines are below "
                          "0.06, and those of the first layer are the lowest.")
    return beside(evidence, second_layer=second, last_layer=last)
