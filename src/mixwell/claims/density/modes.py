"""Modes of a Gaussian mixture: climbing from the means finds the modes that a dense grid finds, in less time.

Paper: Mode-Finding for Mixtures of Gaussian Distributions.
Tried: four mixtures a seed of six components in three dimensions; seconds a mixture against a grid of 61 points an axis
whose peaks are polished by L-BFGS. Against it: a time that is no shorter, or less than 99 % of the grid's modes found
to within 0.001. Beside it: the share of the found modes that the grid finds as well.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from mixwell.claims._judging import provided
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.density.values.gaussian_mixture import GaussianMixtureDensity
from mixwell.density.values.modes import find_modes

COMPONENTS, COLUMNS, POINTS, MIXTURES, SAME = 6, 3, 61, 4, 1e-3


def mixture(draws: torch.Generator) -> GaussianMixtureDensity:
    """Components that overlap."""
    root = 0.6 * torch.randn(COMPONENTS, COLUMNS, COLUMNS, generator=draws, dtype=torch.float64)
    means = 1.5 * torch.randn(COMPONENTS, COLUMNS, generator=draws, dtype=torch.float64)
    weights = 0.2 + torch.rand(COMPONENTS, generator=draws, dtype=torch.float64)
    return GaussianMixtureDensity(weights / weights.sum(), means, root @ root.mT + 0.3 * torch.eye(COLUMNS))


def climbed(p: GaussianMixtureDensity, start: Tensor) -> np.ndarray:
    """Where L-BFGS ends from a point."""
    from scipy.optimize import minimize

    def downhill(x: np.ndarray) -> tuple[float, np.ndarray]:
        x_1D = torch.from_numpy(x)[None]
        return -float(p.log_prob(x_1D)), -p.score(x_1D)[0].numpy()

    return np.asarray(minimize(downhill, start.numpy(), jac=True, method="L-BFGS-B",
                               options={"ftol": 1e-15, "gtol": 1e-10}).x)


def on_grid(p: GaussianMixtureDensity) -> np.ndarray:
    """Modes (M, D) from the peaks of a grid over the box of the means and one more on each side."""
    low, high = p.means_KD.amin(0) - 1, p.means_KD.amax(0) + 1
    x = torch.cartesian_prod(*(torch.linspace(float(a), float(b), POINTS, dtype=torch.float64)
                               for a, b in zip(low, high)))
    height = torch.cat([p.log_prob(part) for part in x.split(20_000)]).reshape(1, 1, *[POINTS] * COLUMNS)
    peak = (torch.nn.functional.max_pool3d(height, 3, 1, 1) == height).flatten()
    found: list[np.ndarray] = []
    for start in x[peak]:
        end = climbed(p, start)
        if all(np.linalg.norm(end - mode) > SAME for mode in found):
            found.append(end)
    return np.stack(found)


def share(wanted: np.ndarray, found: np.ndarray) -> float:
    """Share of the wanted modes that are among the found ones."""
    return float((np.linalg.norm(wanted[:, None] - found, axis=-1).min(1) < SAME).mean())


def claim(bench: Bench) -> Evidence:
    """Seconds of both, and which modes they have in common."""
    means = []
    for seed in bench.seeds:
        draws, rows = generator(seed, "mixtures"), []
        for _ in range(MIXTURES):
            p, began = mixture(draws), perf_counter()
            modes = find_modes(p)[0].numpy()
            between = perf_counter()
            peaks = on_grid(p)
            rows.append((between - began, perf_counter() - between, share(peaks, modes), share(modes, peaks)))
        means.append(np.mean(rows, 0))
    ours, theirs, found, shared = np.stack(means, 1).tolist()
    evidence = weigh("Climbing from the means finds every mode of a dense grid in less time.", "seconds a mixture",
                     ours, theirs)
    return provided(evidence, sum(found) / len(found) >= 0.99, "Modes of the grid are missed.",
                    share_of_the_grids_modes=found, share_that_the_grid_finds=shared)
