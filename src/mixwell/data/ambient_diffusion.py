"""Ambient diffusion on a mixture of clean and noisy samples: each teaches the noise levels above its own.

**Equation:** y = x0 + s e, noised once; sigma = max(exp(N(m, v^2)), s), x = y + sqrt(sigma^2 - s^2) n. The denoiser's
    D(x, sigma) of x0 is told y by p = (1 - s^2 / sigma^2) D + (s^2 / sigma^2) x; loss (sigma^2 + d^2) / (sigma d)^2
    (p - y)^2. Worth of samples: n_c clean ones and n_s of noise s know parameters with the bound
    tr (n_c I_0 + n_s I_s)^-1, I the Fisher information of the noised density.
**Shapes:** samples [N, D] (or [N, C, H, W]), their levels s [N], 0 where clean; a scalar out.
**Reference:** Daras, Cherapanamjeri, Daskalakis 2025 (2411.02780), the released code; preconditioning and sampler:
    Karras et al. 2022 (2206.00364).
**Differs:** the consistency term, off by default in the released trainer, is left out. Worth is by information in one
    dimension, where it is exact up to quadrature; the paper bounds the sample complexity of mixtures.
**Fails when:** noise is drawn afresh for each epoch: its mean is the clean sample. Noisy samples alone say nothing of
    the density below their level: of means 0.5 apart (std 0.2, noise 0.8) a thousand are worth 59 clean ones where
    there is one mean, 9.6 where there are three, 1.3 where there are five; beside a hundred clean ones the next noisy
    one counts 0.05 to 0.07 of a clean one in all of these.
**Cost:** one pass of the denoiser.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least

Denoise = Callable[[Tensor, Tensor], Tensor]  # noisy samples [N, ...], sigma [N] -> clean ones


@dataclass(frozen=True, kw_only=True)
class Config:
    """Noise of training and of sampling; `ValueError` for a value out of range."""

    log_mean: float = -1.2  # m of log sigma
    log_std: float = 1.2  # v, above 0
    data_std: float = 0.5  # d of the clean samples, above 0
    steps: int = 18  # of sampling, at least 2
    least: float = 0.002  # sigma of the last step, above 0
    most: float = 80.0  # sigma of the first, above `least`
    bend: float = 7.0  # rho: how much steps gather at small sigma, above 0

    def __post_init__(self) -> None:
        check_above(self, log_std=0, data_std=0, least=0, bend=0)
        check_least(self, steps=2)
        check_above(self, most=self.least)


class Noisy(NamedTuple):
    """Samples, and the standard deviation of the noise that each carries."""

    samples: Tensor
    level_N: Tensor


@method(title="Ambient diffusion on clean and noisy samples", year=2024,
        paper="How much is a noisy image worth? Data Scaling Laws for Ambient Diffusion")
def ambient_diffusion(denoise: Denoise, data: Noisy, config: Config, generator: torch.Generator) -> Tensor:
    """The training loss of a batch; a level that is negative or no sample's raises `MixwellError`."""
    samples, level_N = data
    check(data)
    noise_N = torch.randn(len(samples), generator=generator)
    drawn_N = torch.exp(config.log_mean + config.log_std * noise_N)
    sigma_N = torch.maximum(drawn_N, level_N)
    more_N = sigma_N.square() - level_N.square()
    fresh = torch.randn(samples.shape, generator=generator)
    x = samples + beside(more_N.sqrt(), samples) * fresh
    told = of_noisy(denoise(x, sigma_N), x, sigma_N, level_N)
    off = told - samples
    weight_N = weights(sigma_N, config.data_std)
    error = beside(weight_N, samples) * off.square()
    return error.mean()


def check(data: Noisy) -> None:
    """Raise `MixwellError` for levels that no noise has."""
    samples, level_N = data
    count = len(samples)
    shape = tuple(level_N.shape)
    if shape != (count,):
        raise MixwellError(f"levels of shape {shape} came for {count} samples; expected one for each.")
    least = level_N.min().item()
    if not least >= 0:
        raise MixwellError(f"a sample has the noise {least:g}; expected 0 for clean ones, else above it.")


def beside(value_N: Tensor, samples: Tensor) -> Tensor:
    """A value for each sample, shaped to multiply it."""
    ones = [1] * (samples.ndim - 1)
    return value_N.reshape(-1, *ones)


def of_noisy(clean: Tensor, x: Tensor, sigma_N: Tensor, level_N: Tensor) -> Tensor:
    """E[y | x] from E[x0 | x]: what the sample was before the last noise, from what it was before all."""
    ratio_N = level_N / sigma_N
    share = beside(ratio_N.square(), x)
    return torch.lerp(clean, x, share)


def weights(sigma_N: Tensor, data_std: float) -> Tensor:
    """(sigma^2 + d^2) / (sigma d)^2."""
    product_N = sigma_N * data_std
    sum_N = sigma_N.square() + data_std**2
    return sum_N / product_N.square()


class Preconditioned(nn.Module):
    """A denoiser from a network of (scaled samples, log sigma / 4 [N, 1]): near the input where noise is small."""

    def __init__(self, network: Callable[[Tensor, Tensor], Tensor], data_std: float = 0.5) -> None:
        super().__init__()
        self.network = network
        self.data_std = data_std

    def forward(self, x: Tensor, sigma_N: Tensor) -> Tensor:
        """Clean samples from noisy ones."""
        own = self.data_std
        sigma = beside(sigma_N, x)
        total = sigma.square() + own**2
        size = total.sqrt()
        log_N = sigma_N.log() / 4
        raw = self.network(x / size, log_N[:, None])
        kept = own**2 / total
        change = sigma * own / size
        return kept * x + change * raw


def schedule(config: Config) -> Tensor:
    """Sigma of every step, falling, and 0: [steps + 1]."""
    root = 1 / config.bend
    first = config.most**root
    last = config.least**root
    roots = torch.linspace(first, last, config.steps)
    falling = roots**config.bend
    end = torch.zeros(1)
    return torch.cat([falling, end])


@torch.no_grad()
def sampled(denoise: Denoise, noise: Tensor, config: Config) -> Tensor:
    """Samples from standard normal noise of their shape, by Heun's steps along the flow of probability."""
    sigma_S = schedule(config)
    x = sigma_S[0] * noise
    for now, after in itertools.pairwise(sigma_S):
        slope = _slope(denoise, x, now)
        step = after - now
        ahead = x + step * slope
        if after > 0:
            mean = (slope + _slope(denoise, ahead, after)) / 2
            ahead = x + step * mean
        x = ahead
    return x


def _slope(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
    """dx / dsigma."""
    every_N = sigma.expand(len(x))
    return (x - denoise(x, every_N)) / sigma


class Worth(NamedTuple):
    """What samples of a density know of its parameters."""

    bound: Tensor  # sum of the parameters' variances that no unbiased estimate goes below
    clean: Tensor  # how many clean samples alone have that bound
    marginal: Tensor  # how many clean ones the next noisy one counts as


def worth(means_K: Tensor, std: float, level: float, clean: float, noisy: float) -> Worth:
    """Of clean samples and noisy ones, for the means of an even mixture of normals in one dimension, by information.

    No samples at all, two equal means, and means that lie so near in the noise that float64 cannot tell them raise
    `MixwellError`.
    """
    wide = math.hypot(std, level)
    sharp_KK = information(means_K, std)
    blurred_KK = information(means_K, wide)
    inverse_KK = _inverted(clean * sharp_KK + noisy * blurred_KK)
    alone = _inverted(sharp_KK).trace()
    bound = inverse_KK.trace()
    change_KK = inverse_KK @ blurred_KK @ inverse_KK
    marginal = alone * change_KK.trace() / bound**2
    return Worth(bound, alone / bound, marginal)


def _inverted(known_KK: Tensor) -> Tensor:
    size_K = torch.linalg.eigvalsh(known_KK)
    least, most = size_K[0], size_K[-1]
    if not least > 1e-13 * most:
        raise MixwellError("these samples do not tell the means apart; give more, cleaner ones or means further apart.")
    return torch.linalg.inv(known_KK)


def information(means_K: Tensor, std: float, points: int = 4001) -> Tensor:
    """Fisher information of the means of an even mixture of normals: E[g g^T], g_k = r_k (x - mu_k) / std^2: [K, K]."""
    low = means_K.min() - 8 * std
    high = means_K.max() + 8 * std
    part_P = torch.linspace(0, 1, points, dtype=means_K.dtype)
    x_P = torch.lerp(low, high, part_P)
    off_PK = (x_P[:, None] - means_K) / std
    log_PK = -0.5 * off_PK.square()
    density_P = log_PK.exp().sum(1)
    share_P = density_P / density_P.sum()
    own_PK = log_PK.softmax(1)
    slope_PK = own_PK * off_PK / std
    weighed_PK = share_P[:, None] * slope_PK
    return slope_PK.T @ weighed_PK


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twelve points of which eight are noisy, and the best denoiser of a normal."""
    clean = 0.5 * torch.randn(12, 2, generator=generator)
    noise = torch.randn(12, 2, generator=generator)
    noise[:4] = 0
    level_N = torch.tensor([0.0, 0.4, 0.4]).repeat_interleave(4)
    data = Noisy(clean + 0.4 * noise, level_N)

    def denoise(x: Tensor, sigma_N: Tensor) -> Tensor:
        total_N = 0.25 + sigma_N.square()
        return x * beside(0.25 / total_N, x)

    return {"denoise": denoise, "data": data, "config": Config(), "generator": generator}
