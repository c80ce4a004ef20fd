"""Mixture proportion: resampling corrects estimators where the rest of the mixture holds the component."""

from __future__ import annotations

from typing import Any

import torch

from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find
from mixwell.core.rng import generator

ROWS, KAPPA, LEAK, REPEATS = 1500, 0.3, 0.3, 3


def claim(bench: Any) -> Evidence:
    """Absolute error of the share with and without resampling, mean over both bases."""
    module = find("density.robust.proportion").module()
    resampled, plain = [], []
    for seed in bench.seeds:
        source = generator(seed, "proportion")
        gaps: tuple[list[float], list[float]] = ([], [])
        for _ in range(REPEATS):
            mine = torch.rand(ROWS, generator=source) < KAPPA
            near = mine | (torch.rand(ROWS, generator=source) < LEAK)
            x = torch.randn(ROWS, generator=source, dtype=torch.float64) + torch.where(near, 0.0, 3.0)
            h = torch.randn(ROWS, 1, generator=source, dtype=torch.float64)
            here, away = torch.exp(-0.5 * x**2), torch.exp(-0.5 * (x - 3) ** 2)
            alpha = KAPPA * here / (KAPPA * here + (1 - KAPPA) * (LEAK * here + (1 - LEAK) * away))
            for base in ("roc", "kernel"):
                config = module.Config(base=base, max_rows=150)
                for gap, bound in zip(gaps, (alpha, None)):
                    gap.append(abs(module.mixture_proportion(x[:, None], h, config, source, alpha=bound) - KAPPA))
        resampled.append(sum(gaps[0]) / len(gaps[0]))
        plain.append(sum(gaps[1]) / len(gaps[1]))
    return weigh("Resampled estimators of the mixture proportion beat their originals where irreducibility fails",
                 "absolute error of the share", resampled, plain,
                 note=f"share {KAPPA}, leak {LEAK}, {ROWS} rows; alpha is the exact posterior; mean of two bases")
