"""Modes of kernel densities: a search in a few random dimensions finds nearly the full search's density.

Paper: Dimensionality Reduction for General KDE Mode Finding.
Tried: 300 points around five centres in 500 dimensions, Gaussian and logistic kernels of bandwidth 6, twenty starts;
density at the mode that is found in 23 random dimensions (4 log n) and lifted, over that at the mode of mean shift in
all dimensions, mean of both kernels, against nine tenths. Beside it: how many times as fast it is. Against it: a share
of nine tenths or less.
"""

from __future__ import annotations

import math
from time import perf_counter

import torch

from mixwell.claims._series import mean
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.registry import find
from mixwell.core.rng import generator

POINTS, DIMS, ENOUGH = 300, 500, 0.9
SIZES = (40, 80, 60, 70, 50)  # points around each centre
FEW = math.ceil(4 * math.log(POINTS))

CLAIM = Claim("Random projection to O(log n) dimensions keeps the mode's density.", "share of the full search's",
              quantity="density", baseline=ENOUGH, lower_is_better=False)


def cloud(source: torch.Generator) -> torch.Tensor:
    """Points (300, 500) around five centres."""
    centres = torch.randn(5, DIMS, generator=source, dtype=torch.float64)
    noise = 0.3 * torch.randn(POINTS, DIMS, generator=source, dtype=torch.float64)
    return centres.repeat_interleave(torch.tensor(SIZES), 0) + noise


def compare(points: torch.Tensor, kernel: str, source: torch.Generator) -> tuple[float, float]:
    """(density at the lifted mode over the full search's, how many times as fast it was found)."""
    module = find("density.values.kde_modes").module()
    options = {"kernel": kernel, "bandwidth": 6.0, "starts": 20}
    began = perf_counter()
    full = module.kde_mode(points, module.Config(**options), source)
    between = perf_counter()
    near = module.kde_mode(points, module.Config(**options, dims=FEW), source)
    full_s, near_s = between - began, perf_counter() - between
    return near.density / full.density, full_s / near_s


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Means of both kernels on one cloud."""
    source = generator(seed, "modes")
    points = cloud(source)
    kinds = [compare(points, kernel, source) for kernel in ("gaussian", "logistic")]
    densities, ratios = zip(*kinds)
    kept, faster = mean(densities), mean(ratios)
    return {"method": {"density": kept, "times as fast": faster}}
