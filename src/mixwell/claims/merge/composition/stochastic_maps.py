"""Composed stochastic maps: likelihoods of parts compose by integration, and one shared noise is another composition.

Paper: Categorical Stochastic Processes and Likelihood.
Tried: random linear Gaussian parts; largest difference between the likelihood of the composite map and the integral
over what lies between, for noises of their own, against the same for one shared noise. Against it: a difference above
1e-6, or one that is no smaller than that of the shared noise.
"""

from __future__ import annotations

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.claims.merge._digits import module
from mixwell.core.rng import generator

TRIPLES = 20
CLAIM = Claim("Likelihoods compose by integration where noises are apart.", "largest difference, nats",
              provided=(Comparison(baseline=1e-6),))


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Largest differences of both compositions from the integral."""
    own = module("merge.composition.stochastic_maps")
    draws = generator(seed, "maps")
    apart = {"method": 0.0, "baseline": 0.0}
    for _ in range(TRIPLES):
        numbers = torch.rand(8, generator=draws, dtype=torch.float64) + 0.2
        first, second = own.Affine(*numbers[:3]), own.Affine(*numbers[3:6])
        a, c = numbers[6:]
        expected = own.integrated(second, first, a, c)
        for side, shared in (("method", False), ("baseline", True)):
            whole = own.stochastic_maps(second, first, own.Config(shared=shared))
            difference = whole.log_likelihood(a, c) - expected
            apart[side] = max(apart[side], float(difference.abs()))
    return apart
