"""Mixture proportion: resampling corrects estimators where the rest of the mixture holds the component.

Paper: Mixture Proportion Estimation Beyond Irreducibility.
Tried: 1,500 rows of which 30 % are of the component and 30 % of the rest look like it, and 1,500 rows of the component;
absolute error of the share, mean of three data sets and of two base estimators (roc, kernel) on 150 rows at most, with
resampling by the exact posterior against without. Against it: an error that is no smaller.
"""

from __future__ import annotations

import torch

from mixwell.claims._series import mean
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.registry import find
from mixwell.core.rng import generator

ROWS, KAPPA, LEAK, REPEATS = 1500, 0.3, 0.3, 3

CLAIM = Claim("Resampled estimators of the mixture proportion beat their originals where irreducibility fails.",
              "absolute error of the share")


def draw(source: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of the mixture and of the component (ROWS, 1), and the exact posterior of the rows."""
    mine = torch.rand(ROWS, generator=source) < KAPPA
    leaked = torch.rand(ROWS, generator=source) < LEAK
    near = mine | leaked
    noise = torch.randn(ROWS, generator=source, dtype=torch.float64)
    x = noise + torch.where(near, 0.0, 3.0)
    h = torch.randn(ROWS, 1, generator=source, dtype=torch.float64)
    here, away = bell(x), bell(x - 3)
    rest = LEAK * here + (1 - LEAK) * away
    own = KAPPA * here
    whole = own + (1 - KAPPA) * rest
    return x[:, None], h, own / whole


def bell(x: torch.Tensor) -> torch.Tensor:
    """exp(-x^2 / 2)."""
    return torch.exp(-0.5 * x**2)


def off(shares: list[float]) -> float:
    """Mean absolute error."""
    errors = [abs(share - KAPPA) for share in shares]
    return mean(errors)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Mean errors of the share with and without resampling, over repeats and bases."""
    module = find("density.robust.proportion").module()
    source = generator(seed, "proportion")
    resampled, plain = [], []
    for _ in range(REPEATS):
        x, h, alpha = draw(source)
        for base in ("roc", "kernel"):
            config = module.Config(base=base, max_rows=150)
            corrected = module.mixture_proportion(x, h, config, source, alpha=alpha)
            original = module.mixture_proportion(x, h, config, source, alpha=None)
            resampled.append(corrected)
            plain.append(original)
    return {"method": off(resampled), "baseline": off(plain)}
