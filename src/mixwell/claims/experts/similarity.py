"""Experts grow less alike with depth, the last layer excepted.

Paper: A Closer Look into Mixture-of-Experts in Large Language Models.
Tried: the bench's language model with four layers, top-2 of eight experts; mean cosine of the experts' gate matrices,
third layer against first. Against it: a cosine in the third layer that is no lower.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._judging import beside
from mixwell.claims.bench import Bench
from mixwell.claims.language import DEEP, TOKENS
from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.routing import Context


def likeness(model: Any) -> list[float]:
    """Mean cosine between experts' gate matrices in each layer."""
    entry = registry.find("experts.analysis.similarity")
    mixers = [layer.channel_mixer for layer in model.layers]
    return [entry.load()(m.gate_up_proj, m.down_proj, entry.module().Config(), Context())["gate"]["mean"]
            for m in mixers]


def claim(bench: Bench) -> Evidence:
    """Likeness of experts in the third layer against the first."""
    layers = [likeness(bench.train(bench.arch(**DEEP), seed, tokens=TOKENS).model) for seed in bench.seeds]
    evidence = weigh("Experts grow less alike with depth.",
                     "mean cosine of experts' gate matrices, third layer against first",
                     [run[2] for run in layers], [run[0] for run in layers],
                     note="Experts that start independent stay nearly so on 300,000 tokens: all cosines are below "
                          "0.06, and those of the first layer are the lowest.")
    return beside(evidence, second_layer=[run[1] for run in layers], last_layer=[run[3] for run in layers])
