"""Mixture-of-experts proposals: fewer wasted particles than the plain filter when the optimal kernel has two modes.

Paper: Adaptive sequential Monte Carlo by means of mixture of experts.
Tried: 30 steps of a walk of which only the noisy square is seen, 500 particles; share of effective particles, mean over
the series, with two fitted experts against proposals from the transition (the bootstrap filter). Against it: a share
that is no higher.
"""

from __future__ import annotations

from typing import Literal

import torch

from mixwell.claims._series import by_seed
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
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


def share(seed: int, proposal: Literal["experts", "bootstrap"]) -> float:
    """Mean effective share of the particles."""
    model = NoisyWalk(power=2, s=2.0)
    series = observed(model, generator(seed, "series"))
    config = Config(particles=PARTICLES, proposal=proposal, fit_draws=500)
    draws = generator(seed, "filter")
    found = particle_filter(model, series, draws, config)
    effective = float(found.effective_T.mean())
    return effective / PARTICLES


def claim(bench: Bench) -> Evidence:
    """Effective share with experts and without."""
    ours = by_seed(bench, share, "experts")
    theirs = by_seed(bench, share, "bootstrap")
    return weigh("Mixture-of-experts proposals follow multimodal optimal kernels.", "effective share of the particles",
                 ours, theirs, lower_is_better=False)
