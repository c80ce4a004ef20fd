"""Mixture-of-experts proposals: fewer wasted particles than the plain filter when the optimal kernel has two modes.

Paper: Adaptive sequential Monte Carlo by means of mixture of experts.
Tried: 30 steps of a walk of which only the noisy square is seen, 500 particles; share of effective particles, mean over
the series, with two fitted experts against proposals from the transition (the bootstrap filter).
"""

from __future__ import annotations

import torch

from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.density.processes.expert_proposal import Config, NoisyWalk, particle_filter


def share(proposal: str, seed: int) -> float:
    """Mean effective share of the particles."""
    model, draws = NoisyWalk(power=2, s=2.0), generator(seed, "series")
    x, series = model.draw_first(1, draws), []
    for step in range(30):
        x = model.draw_next(x, step, draws)
        series.append(x[0, 0] ** 2 + model.r * torch.randn((), generator=draws, dtype=torch.float64))
    config = Config(particles=500, proposal=proposal, fit_draws=500)  # type: ignore[arg-type]
    found = particle_filter(model, torch.stack(series), generator(seed, "filter"), config)
    return float(found.effective_T.mean()) / 500


def claim(bench: Bench) -> Evidence:
    """Effective share with experts and without."""
    ours, theirs = ([share(proposal, seed) for seed in bench.seeds] for proposal in ("experts", "bootstrap"))
    return weigh("Mixture-of-experts proposals follow multimodal optimal kernels.", "effective share of the particles",
                 ours, theirs, lower_is_better=False)
