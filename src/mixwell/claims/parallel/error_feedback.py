"""EF21-W: with clients weighted by their smoothness, the steps that theory allows come nearer to the optimum.

Paper: Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness Constants.
Tried: quadratics of ten clients in 30 dimensions, two of which curve a hundred times as much, one entry sent a round,
2,000 rounds at the largest step of each theory: weighted clients, whose step has the arithmetic mean of smoothness,
against EF21 with the quadratic one. Logarithm (base 10) of the squared norm of the whole gradient over that at the
start. Beside: EF21 at the step of the arithmetic mean, which the paper's last theorem allows it, too. Tuned steps,
which erase such differences, are not tried. Against it: a norm that is no smaller.
"""

from __future__ import annotations

import math

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.rng import generator
from mixwell.parallel.error_feedback import Config, error_feedback

CLIENTS, DIMENSIONS, ROUNDS = 10, 30, 2000
STEEP, TIMES = 2, 100.0  # clients that curve so many times as much

CLAIM = Claim("Weighted clients come nearer to the optimum at the step that theory allows.",
              "log10 of the squared gradient over that at the start", at_least=0.1)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """How far the gradient fell on each side."""
    curve, slope = clients(seed)
    begun = torch.ones(DIMENSIONS, dtype=torch.float64)
    weighted = Config(rounds=ROUNDS, weighted=True)
    sides = {"method": weighted, "baseline": Config(rounds=ROUNDS, mean="quadratic"),
             "arithmetic mean": Config(rounds=ROUNDS)}
    started = _squared(curve, slope, begun)
    found = {}
    for name, config in sides.items():
        done = error_feedback(begun, curve, slope, config)
        left = _squared(curve, slope, done.x_D)
        found[name] = math.log10(left / started)
    return found


def clients(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Curves [C, D, D] and slopes [C, D] of the clients."""
    draws = generator(seed, "clients")
    square = DIMENSIONS, DIMENSIONS
    root = torch.randn(CLIENTS, *square, generator=draws, dtype=torch.float64)
    powers = root @ root.mT
    curve = powers / DIMENSIONS
    curve.diagonal(dim1=1, dim2=2).add_(0.1)
    curve[:STEEP] *= TIMES
    slope = torch.randn(CLIENTS, DIMENSIONS, generator=draws, dtype=torch.float64)
    return curve, slope


def _squared(curve: torch.Tensor, slope: torch.Tensor, point: torch.Tensor) -> float:
    """The squared norm of the mean of the clients' gradients."""
    each = curve @ point - slope
    whole = each.mean(0)
    return float(whole @ whole)
