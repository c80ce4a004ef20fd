"""Mixture-of-experts proposals: fewer wasted particles than the plain filter when the optimal kernel has two modes.

Paper: Adaptive sequential Monte Carlo by means of mixture of experts.
Tried: 30 steps of a walk of which only the noisy square is seen, 500 particles; share of effective particles, mean over
the series, with two fitted experts against proposals from the transition (the bootstrap filter). Beside it: seconds of
both. Against it: a share that is no higher.
"""

from __future__ import annotations

from time import perf_counter
from typing import Literal

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator
from mixwell.density.processes.expert_proposal import Config, NoisyWalk, particle_filter

PARTICLES = 500


def observed(model: NoisyWalk, draws: torch.Generator) -> torch.Tensor:
    """Thirty noisy squares of a walk [T]."""
    x = model.draw_first(1, draws)
    seen = []
    for step in range(30):
        x = model.draw_next(x, step, draws)
        noise = torch.randn((), generator=draws, dtype=torch.float64)
        square = x[0, 0] ** 2
        seen.append(square + model.r * noise)
    return torch.stack(seen)


def share(bench: Bench, seed: int, *, proposal: Literal["experts", "bootstrap"]) -> dict[str, float]:
    """Mean effective share of the particles, and the seconds that they took."""
    model = NoisyWalk(power=2, s=2.0)
    series = observed(model, generator(seed, "series"))
    config = Config(particles=PARTICLES, proposal=proposal, fit_draws=500)
    draws = generator(seed, "filter")
    began = perf_counter()
    found = particle_filter(model, series, draws, config)
    took = perf_counter() - began
    effective = float(found.effective_T.mean())
    return {"effective": effective / PARTICLES, "seconds": took}


CLAIM = Claim("Mixture-of-experts proposals follow multimodal optimal kernels.", "effective share of the particles",
              quantity="effective", lower_is_better=False,
              sides={"method": Side(share, {"proposal": "experts"}),
                     "baseline": Side(share, {"proposal": "bootstrap"})})
