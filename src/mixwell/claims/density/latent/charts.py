"""Charts: two auto-encoders cover a circle that one of the same size cannot, and inverse problems are solved on it.

Paper: Manifold Learning by Mixture Models of VAEs for Inverse Problems.
Tried: 2,000 points of the unit circle with noise 0.01; two charts against one with as many parameters, 400 steps of
seeding, 1,000 of training and 250 of overlap each (learning rate tuned by the distance, three coupling blocks, else the
paper's settings). Of 2,000 samples the largest gap in angle and the mean distance to the circle; both must be smaller.
Beside them 64 inverse problems y = G x with x on the circle, from 64 random starts, 60 steps of descent: median
residual |G x - y| at the start, after 20 and at the end, the share solved (below 0.05), and the mean distance to the
circle at the end. Against it: a gap or a distance that is no smaller.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.core.rng import generator
from mixwell.density.latent.charts import ChartMixture, Config, Training, misfit

HIDDEN = {1: 46, 2: 32}  # charts -> width, for 14.1 k and 14.2 k parameters
STEPS = {"seed_steps": 400, "steps": 1000, "smooth_steps": 250, "overlap_steps": 250}
OPERATOR = torch.tensor([[1.0, 0.3], [0.0, 0.9]])  # G, rows of x from the right


def circle(count: int, draws: torch.Generator) -> Tensor:
    """Points (count, 2) of the unit circle."""
    angle = 2 * math.pi * torch.rand(count, generator=draws)
    return torch.stack([angle.cos(), angle.sin()], 1)


def distance(x: Tensor) -> float:
    """Mean distance to the unit circle."""
    off = x.norm(dim=1) - 1
    return float(off.abs().mean())


def gap(x: Tensor) -> float:
    """Largest angle between neighbours, in degrees."""
    angle = torch.atan2(x[:, 1], x[:, 0])
    ordered = angle.sort().values
    around = ordered[:1] + 2 * math.pi - ordered[-1:]
    gaps = torch.cat([ordered.diff(), around])
    return math.degrees(float(gaps.max()))


def trained(charts: int, lr: float, draws: torch.Generator, seed: int) -> ChartMixture:
    """A mixture of so many charts, fitted to the noisy circle."""
    x = circle(2000, draws)
    normal = torch.randn(x.shape, generator=draws)
    noise = 0.01 * normal
    config = Config(n_charts=charts, layers=3, hidden_dim=HIDDEN[charts])
    model = ChartMixture(2, config, generator(seed, "model"))
    order = generator(seed, "train")
    model.fit(x + noise, order, Training(**STEPS, lr=lr))
    return model


def inverse_problems(model: ChartMixture, draws: torch.Generator) -> dict[str, float]:
    """What descent reaches on 64 problems y = G x."""
    y = circle(64, draws) @ OPERATOR
    start = circle(64, draws)
    points, values = model.descend(misfit(lambda v: v @ OPERATOR, y), start, steps=60)
    residual = (2 * values).sqrt()
    first, later, last = residual[0], residual[min(20, len(residual) - 1)], residual[-1]
    solved = last < 0.05
    return {"residual, start": float(first.median()), "residual, 20 steps": float(later.median()),
            "residual, end": float(last.median()), "share solved": float(solved.float().mean()),
            "distance at the end": distance(points[-1])}


def measure(bench: Bench, seed: int, *, charts: int, lr: float) -> dict[str, float]:
    """Train and measure one mixture."""
    draws = generator(seed, "circle")
    model = trained(charts, lr, draws, seed)
    drawn = model.sample(2000, generator(seed, "sample"))
    return {"gap in degrees": gap(drawn), "distance": distance(drawn)} | inverse_problems(model, draws)


RATES = {"lr": (3e-4, 1e-3, 3e-3)}

CLAIM = Claim("Two charts cover a circle more evenly and closely than one auto-encoder of the same size.",
              "largest gap in degrees", quantity="gap in degrees", provided=(Comparison(quantity="distance"),),
              tuned_by="distance",
              sides={"method": Side(measure, {"charts": 2}, RATES), "baseline": Side(measure, {"charts": 1}, RATES)})
