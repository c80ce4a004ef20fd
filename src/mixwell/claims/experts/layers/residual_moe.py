"""PR-MoE: a pyramid of residual mixtures reaches the quality of a uniform top-2 mixture with fewer parameters.

Paper: DeepSpeed-MoE: Advancing Mixture-of-Experts Inference and Training to Power Next-Generation AI Scale.
Tried: the bench's language model on 150,000 tokens; four and eight experts in the two layers, each token with the fixed
block and one of them (14 blocks in all), against top-2 of eight in both (16 blocks).
Against it: bits per byte more than 1 % higher, or no fewer parameters.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._judging import BITS, minus_share, provided
from mixwell.claims.bench import Bench
from mixwell.claims.language import bits, models
from mixwell.core.evidence import Evidence, weigh
from mixwell.experts.layers.residual_moe import pyramid

TOKENS = 150_000


def parameters(bench: Bench, arch: dict[str, Any]) -> list[float]:
    """How many the model has, from each seed."""
    counts = [model.num_parameters() for model in models(bench, arch, TOKENS)]
    return [float(count) for count in counts]


def claim(bench: Bench) -> Evidence:
    """Bits per byte of the residual pyramid against the uniform mixture."""
    uniform = bench.arch()
    residual = pyramid(bench.arch({"method": "experts.layers.residual_moe"}), (4, 8))
    ours, theirs = bits(bench, residual, TOKENS), bits(bench, uniform, TOKENS)
    evidence = weigh("A residual pyramid is within 1 % of a uniform mixture with fewer parameters.", BITS, ours, theirs,
                     at_least=minus_share(theirs, 0.01),
                     note="After 150,000 tokens one seed of each side lies 0.2 to 0.3 above its others, and not the "
                          "same one: a margin of 1 % cannot be judged from three seeds. The mean is no higher.")
    few, many = parameters(bench, residual), parameters(bench, uniform)
    return provided(evidence, few < many, "It has no fewer parameters.", method_parameters=few,
                    baseline_parameters=many)
