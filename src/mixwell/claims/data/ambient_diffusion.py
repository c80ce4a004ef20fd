"""A tenth of the samples clean and the rest noisy teach nearly as much as all of them clean.

Paper: How much is a noisy image worth? Data Scaling Laws for Ambient Diffusion.
Tried: 320 points of 16 normals (std 0.05) on a sphere of radius 1 in six dimensions, 32 of them clean, the others with
noise of 0.4; a perceptron of two layers of 128, 500 steps; root of the energy distance between 1,000 samples and as
many fresh points. Baseline: the 32 clean ones alone. Beside: all clean, and all noisy; learning rates tuned for each.
Against it: an error that is not a tenth lower, one that is a quarter above that of all clean, or all noisy being no
worse.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.core.rng import generator
from mixwell.data.ambient_diffusion import Config, Noisy, Preconditioned, ambient_diffusion, beside, sampled
from mixwell.data.compact import drawn

POINTS, CLEAN, NORMALS, DIM, NOISE, TESTED, WIDTH, STEPS = 320, 32, 16, 6, 0.4, 1000, 128, 500
SCALE = 6**-0.5  # of one coordinate
CONFIG = Config(data_std=SCALE, most=10.0)


def points(seed: int, count: int, draws: torch.Generator) -> Tensor:
    """Draws of the seed's mixture: [count, DIM]."""
    fixed = generator(seed, "centres")
    centres = torch.randn(NORMALS, DIM, generator=fixed)
    unit = nn.functional.normalize(centres)
    which = torch.randint(NORMALS, (count,), generator=draws)
    noise = torch.randn(count, DIM, generator=draws)
    own = unit[which]
    return own + 0.05 * noise


def data(seed: int, clean: int, noisy: int) -> Noisy:
    """Clean points, and others that were noised once."""
    draws = generator(seed, "points")
    count = clean + noisy
    every = points(seed, count, draws)
    place_N = torch.arange(count)
    level_N = NOISE * (place_N >= clean)
    noise = torch.randn(every.shape, generator=draws)
    samples = every + beside(level_N, every) * noise
    return Noisy(samples, level_N)


class Network(nn.Module):
    """Two hidden layers over a point and its noise."""

    def __init__(self, draws: torch.Generator) -> None:
        super().__init__()
        into = DIM + 1
        bent = nn.SiLU()
        first = drawn(nn.Linear, draws, into, WIDTH)
        second = drawn(nn.Linear, draws, WIDTH, WIDTH)
        last = drawn(nn.Linear, draws, WIDTH, DIM)
        self.layers = nn.Sequential(first, bent, second, bent, last)

    def forward(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        """What the preconditioning asks for."""
        both = torch.cat([x, log_sigma], 1)
        return self.layers(both)


def measured(bench: Bench, seed: int, *, lr: float, clean: int = CLEAN, noisy: int = POINTS - CLEAN) -> float:
    """Root of the energy distance of what was learned."""
    given = data(seed, clean, noisy)
    count = len(given.samples)
    draws = generator(seed, "ambient")
    denoiser = Preconditioned(Network(draws), SCALE)
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, STEPS)
    for _ in range(STEPS):
        places = torch.randint(count, (128,), generator=draws)
        batch = Noisy(given.samples[places], given.level_N[places])
        loss = ambient_diffusion(denoiser, batch, CONFIG, draws)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    noise = torch.randn(TESTED, DIM, generator=draws)
    made = sampled(denoiser, noise, CONFIG)
    fresh = points(seed, TESTED, generator(seed, "fresh"))
    return distance(made, fresh)


def distance(a: Tensor, b: Tensor) -> float:
    """Root of the energy distance, without pairs of a point with itself."""
    between = torch.cdist(a, b)
    of_a = torch.pdist(a)
    of_b = torch.pdist(b)
    energy = 2 * between.mean() - of_a.mean() - of_b.mean()
    root = energy.clamp(min=0).sqrt()
    return root.item()


GRID = {"lr": [1e-3, 3e-3, 1e-2]}
CLAIM = Claim(
    "A few clean samples and many noisy ones teach as much as all clean.", "root of the energy distance", at_least=0.1,
    relative=True, provided=(Comparison(baseline="all clean", at_least=-0.25, relative=True),
                             Comparison(method="method", baseline="all noisy")),
    sides={"method": Side(measured, grid=GRID), "baseline": Side(measured, {"noisy": 0}, GRID),
           "all clean": Side(measured, {"clean": POINTS, "noisy": 0}, GRID),
           "all noisy": Side(measured, {"clean": 0, "noisy": POINTS}, GRID)})
