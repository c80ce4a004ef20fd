"""Modes of kernel densities: a search in a few random dimensions finds nearly the full search's density."""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import torch

from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find
from mixwell.core.rng import generator

POINTS, DIMS, ENOUGH = 300, 500, 0.9


def claim(bench: Any) -> Evidence:
    """Density at the lifted mode over that of mean shift in all dimensions, against nine tenths, two kernels."""
    module = find("density.values.kde_modes").module()
    few = math.ceil(4 * math.log(POINTS))
    kept, speed = [], []
    for seed in bench.seeds:
        source = generator(seed, "modes")
        centres = torch.randn(5, DIMS, generator=source, dtype=torch.float64)
        size = torch.tensor([40, 80, 60, 70, 50])
        points = centres.repeat_interleave(size, 0) + 0.3 * torch.randn(POINTS, DIMS, generator=source,
                                                                        dtype=torch.float64)
        ratios = []
        for kernel in ("gaussian", "logistic"):
            options = {"kernel": kernel, "bandwidth": 6.0, "starts": 20}
            began = perf_counter()
            full = module.kde_mode(points, module.Config(**options), source)
            between = perf_counter()
            near = module.kde_mode(points, module.Config(**options, dims=few), source)
            ratios.append(near.density / full.density)
            speed.append((between - began) / (perf_counter() - between))
        kept.append(sum(ratios) / len(ratios))
    return weigh("Random projection to O(log n) dimensions keeps the mode's density", "share of the full search's",
                 kept, [ENOUGH] * len(kept), lower_is_better=False,
                 note=f"{POINTS} points in {DIMS} dimensions, {few} projected; time ratios "
                 f"{[round(v, 1) for v in speed]}")
