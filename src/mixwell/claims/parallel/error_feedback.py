"""EF21-W: with clients weighted by their smoothness, the steps that theory allows come nearer to the optimum.

Paper: Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness Constants.
Tried: quadratics of ten clients in 30 dimensions, two of which curve a hundred times as much, one entry sent a round,
2,000 rounds at the largest step of each theory: weighted clients, whose step has the arithmetic mean of smoothness,
against EF21 with the quadratic one. Logarithm (base 10) of the squared norm of the whole gradient over that at the
start. Beside: EF21 at the step of the arithmetic mean, which the paper's last theorem allows it, too. Tuned steps,
which erase such differences, are not tried. Against it: a norm that is no smaller.
"""

from __future__ import annotations

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
    draws = generator(seed, "clients")
    root = torch.randn(CLIENTS, DIMENSIONS, DIMENSIONS, generator=draws, dtype=torch.float64)
    curve = root @ root.mT / DIMENSIONS + 0.1 * torch.eye(DIMENSIONS)
    curve[:STEEP] *= TIMES
    slope = torch.randn(CLIENTS, DIMENSIONS, generator=draws, dtype=torch.float64)
    begun = torch.randn(DIMENSIONS, generator=draws, dtype=torch.float64)

    def left(**options: object) -> float:
        config = Config(keep=1, rounds=ROUNDS, **options)  # type: ignore[arg-type]
        found = error_feedback(begun, curve, slope, config)
        sizes = [_squared(curve, slope, point) for point in (found.x_D, begun)]
        ratio = sizes[0] / sizes[1]
        return float(ratio.log10())

    return {"method": left(weighted=True), "baseline": left(mean="quadratic"), "arithmetic mean": left()}


def _squared(curve: torch.Tensor, slope: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """The squared norm of the mean of the clients' gradients."""
    whole = (curve @ point - slope).mean(0)
    return whole.square().sum()
