"""Negative binomial mixture: counts that vary more than Poisson ones, columns independent within each component.

**Equation:** p(x) = sum_k w_k prod_d NB(x_d; m_kd, s_kd), NB(x; m, s) = Gamma(x + s) / (Gamma(s) x!) (s / (s + m))^s
(m / (s + m))^x, of mean m and variance m + m^2 / s. M step: m_kd is the weighted mean of column d. With f(s) = sum_n
r_n (log Gamma(x_n + s) - log Gamma(s)) = sum_j W_j log(s + j), W_j the weight of counts above j, s_kd maximises n (s
log s - (s + m) log(s + m)) plus a lower bound of f that has its value and two derivatives at the old s_0: with A =
f'(s_0), e = -f''(s_0) / A and t = s - s_0, slope A / (1 + t e) above s_0 (Jensen), A (1 - e s_0) + A e s_0^2 / s below
(the chord of 1 / (1 + t u) in u, which lies in [0, 1 / s_0]). So the likelihood never falls, and s converges as by
Newton's steps.

**Shapes:** X (N, D), not negative; `weights_` (K,), `means_` (K, D), `sizes_` (K, D) are s: small where counts are
overdispersed, large where they are Poisson.

**Reference:** Lawless (1987), Negative Binomial and Mixed Poisson Regression; Hilbe (2011), Negative Binomial
Regression (the parameters).

**Differs:** the bound of f is written for this file. Numbers that are not whole are taken with Gamma for factorials;
means are kept above 1e-10, sizes in [1e-4, 1e10].

**Fails when:** a column has more zeros than its dispersion explains (`zero_inflated_negative_binomial`). There is no
online EM: the sums hold for the old sizes alone.

**Cost:** O(N K D) a step; functions of small counts are looked up in tables of K D (largest count + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._gaussian import TINY
from mixwell.density.mixtures._columns import CountMixture, draw_counts
from mixwell.density.mixtures._parts import MixtureConfig
from mixwell.density.mixtures.em.columns import ColumnFamily, bisected
from mixwell.density.mixtures.em.exponential import share
from mixwell.density.mixtures.em.loop import Params, held

SMALLEST_MEAN = 1e-10  # so that a column without counts keeps a finite log mean
SMALLEST_SIZE, LARGEST_SIZE = 1e-4, 1e10  # beyond them nothing changes but rounding
SERIES = 1e3  # size from which Stirling's series is exact to rounding, where differences of gamma functions are not


def log_rising(x: Tensor, size: Tensor) -> Tensor:
    """log Gamma(x + size) - log Gamma(size) - x log size, accurate for large sizes."""
    above = x + size
    small = size.clamp(max=SERIES)
    exact = torch.lgamma(x + small) - torch.lgamma(small) - x * small.log()
    correction = (1 / above - 1 / size) / 12
    series = (above - 0.5) * torch.log1p(x / size) - x + correction
    return torch.where(size < SERIES, exact, series)


def log_pmf(x: Tensor, mean: Tensor, size: Tensor) -> Tensor:
    """Log probabilities of counts."""
    spread = (x + size) * torch.log1p(mean / size)
    orders = torch.lgamma(x + 1)
    rising = log_rising(x, size) - orders
    return rising + x * mean.log() - spread


def rising_slopes(x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """First derivative of log Gamma(x + s) - log Gamma(s) in s, and minus the second, at `size`."""
    small = size.clamp(max=SERIES)
    first = torch.digamma(x + small) - torch.digamma(small)
    second = torch.polygamma(1, small) - torch.polygamma(1, x + small)
    near, far = 1 / size, 1 / (x + size)
    gap = near - far
    gap_of_squares = near**2 - far**2
    gap_of_cubes = near**3 - far**3
    first_series = torch.log1p(x * near) + gap / 2 + gap_of_squares / 12
    second_series = gap + gap_of_squares / 2 + gap_of_cubes / 6
    large = size >= SERIES
    return torch.where(large, first_series, first), torch.where(large, second_series, second)


def better_size(count: Tensor, total: Tensor, mean: Tensor, first: Tensor, second: Tensor, old: Tensor) -> Tensor:
    """Sizes that maximise the bound of the expected log-likelihood around `old`, by bisection on the log scale.

    total: sum of the counts, which a held mean does not follow; first, second: sums of `rising_slopes` at `old`.
    """
    beside = count * mean - total
    curve = share(second, first, 0.0)  # e
    flat = first * (1 - curve * old).clamp(min=0)

    def slope(size: Tensor) -> Tensor:
        step = size - old
        upwards = first / (1 + step.clamp(min=0) * curve)
        downwards = flat + (first - flat) * old / size
        below = count * torch.log1p(mean / size) - beside / (size + mean)
        return torch.where(step > 0, upwards, downwards) - below

    start = old.log()
    rising = slope(old) > 0
    smallest, largest = np.log([SMALLEST_SIZE, LARGEST_SIZE])
    low = torch.where(rising, start, smallest)
    high = torch.where(rising, largest, start)
    return bisected(slope, low, high)


def size_of_moments(mean: Tensor, square: Tensor) -> Tensor:
    """Sizes whose variance is that of the data; large ones where it is not above the mean."""
    excess = square - mean**2 - mean
    least = 0.01 * mean
    size = mean**2 / torch.maximum(excess, least).clamp(min=TINY)
    return size.clamp(1e-2, 1e4)


class NegativeBinomial(ColumnFamily):
    """Statistics are counts, and slopes of their gamma functions at the old sizes; squares for a start."""

    harmless = 0.0
    tables = True

    def log_density(self, x: Tensor, params: Params) -> Tensor:
        return log_pmf(x, params["means"], params["sizes"])

    def statistics(self, x: Tensor, params: Params | None) -> Sequence[Tensor]:
        if params is None:
            return x, x**2
        return x, *rising_slopes(x, params["sizes"])

    def estimate(self, seen_SKD: Tensor, sums_MSKD: Tensor, params: Params | None) -> Params:
        total, *rest = sums_MSKD
        mean = share(total, seen_SKD, 1.0).clamp(min=SMALLEST_MEAN)
        if params is None:
            square = share(rest[0], seen_SKD, 2.0)
            return {"means": mean, "sizes": size_of_moments(mean, square)}
        mean = held(self.fixed, "means", mean, params)
        first, second = rest
        size = better_size(seen_SKD, total, mean, first, second, params["sizes"])
        return {"means": mean, "sizes": size}


@method(title="Negative binomial mixture", year=1987, tags={"estimator", "mixture", "missing", "counts"})
class NegativeBinomialMixture(CountMixture, config=MixtureConfig):
    """Mixture of independent overdispersed counts; NaN marks a missing count. Parameters as `GaussianMixture`'s."""

    _attributes: ClassVar[dict[str, str]] = {"means": "means_", "sizes": "sizes_"}
    _fixable = ("weights", "means", "sizes")
    _partly = ("weights", "means", "sizes")
    _family_class = NegativeBinomial
    _averages = False

    def _variates(self, rng: np.random.RandomState, **params_ND: np.ndarray) -> np.ndarray:
        return draw_overdispersed(rng, params_ND["means"], params_ND["sizes"])


def draw_overdispersed(rng: np.random.RandomState, means_ND: np.ndarray, sizes_ND: np.ndarray) -> np.ndarray:
    """Poisson counts whose rates come from gamma distributions."""
    rates_ND = rng.gamma(sizes_ND, means_ND / sizes_ND)
    return draw_counts(rng, rates_ND)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Overdispersed counts of two kinds of rows."""
    means_2D = torch.tensor([[2.0, 12.0], [14.0, 3.0]], dtype=torch.float64)
    means_ND = means_2D.repeat_interleave(60, 0)
    square_CND = torch.randn(10, 120, 2, generator=generator, dtype=torch.float64) ** 2
    factor_ND = square_CND.mean(0)  # a gamma variable of shape 5 and mean 1
    x_ND = torch.poisson(means_ND * factor_ND, generator=generator)
    return {"estimator": NegativeBinomialMixture(2, random_state=0), "X": x_ND.numpy()}
