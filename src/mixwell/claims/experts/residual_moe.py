"""PR-MoE: a pyramid of residual mixtures reaches the quality of a uniform top-2 mixture with fewer parameters.

Paper: DeepSpeed-MoE: Advancing Mixture-of-Experts Inference and Training to Power Next-Generation AI Scale.
Tried: the bench's language model on 150,000 tokens; four and eight experts in the two layers, each token with the fixed
block and one of them (14 blocks in all), against top-2 of eight in both (16 blocks).
Against it: bits per byte more than 1 % higher, or no fewer parameters.
"""

from __future__ import annotations

import statistics

from mixwell.claims._judging import BITS, provided
from mixwell.claims.bench import Bench
from mixwell.claims.language import bits
from mixwell.core.evidence import Evidence, weigh
from mixwell.experts.layers.residual_moe import pyramid

TOKENS = 150_000


def claim(bench: Bench) -> Evidence:
    """Bits per byte of the residual pyramid against the uniform mixture."""
    residual = pyramid(bench.arch({"method": "experts.layers.residual_moe"}), (4, 8))
    ours, theirs = bits(bench, residual, TOKENS), bits(bench, bench.arch(), TOKENS)
    evidence = weigh("A residual pyramid is within 1 % of a uniform mixture with fewer parameters.", BITS, ours, theirs,
                     at_least=-0.01 * statistics.fmean(theirs),
                     note="After 150,000 tokens one seed of each side lies 0.2 to 0.3 above its others, and not the "
                          "same one: a margin of 1 % cannot be judged from three seeds. The mean is no higher.")
    sizes = [[float(bench.train(arch, seed, tokens=TOKENS).model.num_parameters()) for seed in bench.seeds]
             for arch in (residual, bench.arch())]
    return provided(evidence, sizes[0] < sizes[1], "It has no fewer parameters.", method_parameters=sizes[0],
                    baseline_parameters=sizes[1])
