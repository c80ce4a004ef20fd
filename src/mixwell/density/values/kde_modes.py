"""Mode of a kernel density in few dimensions: random projection, mean shift there, and a weighted mean to come back.

**Equation:** f(x) = sum_i w_i k(|x - p_i|^2 / h^2). With a random map P to m = O(log n / eps^2) dimensions all
distances between the centres and the mode keep to 1 +- eps, so the best value over P p_1..P p_n is near that in the
full space. A point z there is lifted by x = sum_i w_i g_i p_i / sum_i w_i g_i, g_i = -k'(|z - P p_i|^2 / h^2), whose
density is at least nearly what z promised. Mean shift, z <- sum w_i g_i P p_i / sum w_i g_i, climbs because k is
convex and falling.

**Shapes:** centres (N, D), weights (N,); a `Mode` with the point (D,) and its density.

**Reference:** Luo, Musco, Widdershoven (2023), Dimensionality Reduction for General KDE Mode Finding, arXiv:2305.18755;
Lee, Li, Musco, Phillips, Tai (2021), Finding an Approximate Mode of a Kernel Density Estimate, arXiv:1912.07673.

**Differs:** written from memory of the papers. The low-dimensional search is mean shift from the best centres instead
of a grid of quasi-polynomial size, so the guarantee is that of the heuristic. Kernels are not normalised: f(p) is 1
where all weight lies on p.

**Fails when:** the kernel is flat or jumps (box): a weighted mean then need not keep the density, and no fast method
does.

**Cost:** O(N D m) to project, O(N m) a start and step, O(N D) to lift; the full search costs O(N D) a start and step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method

# name: (profile k(s) of the squared distance s, and -k'(s) up to a constant), both scaled to k(0) = 1 where finite
Profile = tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, float], Tensor]]
TINY = 1e-12  # squared distance below which the slope of a profile is taken to be that at TINY


def _logistic_slope(s: Tensor, power: float) -> Tensor:
    r = s.clamp(min=TINY).sqrt()
    half = r / 2
    height = torch.cosh(half) ** -2
    slope = torch.tanh(half)
    return height * slope / (2 * r)


def _sigmoid_slope(s: Tensor, power: float) -> Tensor:
    r = s.clamp(min=TINY).sqrt()
    return torch.tanh(r) / torch.cosh(r) / (2 * r)


def _generalised_slope(s: Tensor, power: float) -> Tensor:
    s = s.clamp(min=TINY)
    half = 0.5 * power
    factor = half * s ** (half - 1)
    return factor * torch.exp(-(s**half))


KERNELS: dict[str, Profile] = {
    "gaussian": (lambda s, power: torch.exp(-s), lambda s, power: torch.exp(-s)),
    "logistic": (lambda s, power: torch.cosh(s.sqrt() / 2) ** -2, _logistic_slope),
    "sigmoid": (lambda s, power: 1 / torch.cosh(s.sqrt()), _sigmoid_slope),
    "generalised_gaussian": (lambda s, power: torch.exp(-(s ** (0.5 * power))), _generalised_slope),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the projected mode search; `ValueError` for one out of range."""

    kernel: Literal["gaussian", "logistic", "sigmoid", "generalised_gaussian"] = "gaussian"  # k
    bandwidth: float = 1.0  # h, in the centres' units
    power: float = 1.0  # of "generalised_gaussian", exp(-r^power), above 0 and at most 2
    dims: int | None = None  # m: dimensions to search in; None: the full space, no projection
    starts: int = 10  # mean shifts, from the centres of highest density
    steps: int = 100  # of mean shift, at most
    tol: float = 1e-8  # stop when a step gains a smaller share of the density
    polish: int = 0  # steps of mean shift in the full space after lifting

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel is {self.kernel!r}; expected one of {', '.join(KERNELS)}")
        if not 0 < self.power <= 2 or self.bandwidth <= 0:
            raise ValueError(f"power is {self.power} and bandwidth {self.bandwidth}; expected above 0 up to 2, above 0")
        dims = 1 if self.dims is None else self.dims
        if min(dims, self.starts) < 1 or min(self.steps, self.polish) < 0:
            raise ValueError(f"dims is {self.dims}, starts {self.starts}, steps {self.steps}, polish {self.polish}; "
                             "expected at least 1, 1, 0, 0")


class Mode(NamedTuple):
    """A mode: its place, its density, and what the search promised before lifting."""

    point_D: Tensor
    density: float
    promised: float


def _squares(x_BD: Tensor, centres_ND: Tensor, config: Config) -> Tensor:
    difference_BND = x_BD[:, None] - centres_ND
    return difference_BND.square().sum(-1) / config.bandwidth**2


def density(x_BD: Tensor, centres_ND: Tensor, weights_N: Tensor, config: Config) -> Tensor:
    """The kernel density (B,), unnormalised."""
    profile, _ = KERNELS[config.kernel]
    squares_BN = _squares(x_BD, centres_ND, config)
    return profile(squares_BN, config.power) @ weights_N


def pull(z_BM: Tensor, near_NM: Tensor, centres_ND: Tensor, weights_N: Tensor, config: Config) -> Tensor:
    """Means (B, D) of `centres_ND`, with the weights that mean shift at z gives to `near_NM`."""
    _, slope = KERNELS[config.kernel]
    squares_BN = _squares(z_BM, near_NM, config)
    slope_BN = slope(squares_BN, config.power) * weights_N
    total_B1 = slope_BN.sum(1, keepdim=True)
    moment_BD = slope_BN @ centres_ND
    return moment_BD / total_B1.clamp(min=1e-300)


def mean_shift(z_BM: Tensor, near_NM: Tensor, weights_N: Tensor, config: Config, steps: int) -> Tensor:
    """Climb from every start (B, M)."""
    value_B = density(z_BM, near_NM, weights_N, config)
    for _ in range(steps):
        new_BM = pull(z_BM, near_NM, near_NM, weights_N, config)
        new_B = density(new_BM, near_NM, weights_N, config)
        better_B = new_B > value_B  # a kernel with a peak can lose at its tip, where slopes are cut off
        gain_B = new_B - value_B
        z_BM = torch.where(better_B[:, None], new_BM, z_BM)
        value_B = torch.maximum(new_B, value_B)
        still_B = gain_B <= config.tol * value_B
        if bool(still_B.all()):
            break
    return z_BM


@method(
    title="Projected mode of a kernel density",
    paper="Dimensionality Reduction for General KDE Mode Finding",
    year=2023,
    tags={"value"},
)
def kde_mode(centres: Tensor, config: Config, generator: torch.Generator, *, weights: Tensor | None = None) -> Mode:
    """A mode of the kernel density of `centres` (N, D), weighted by `weights` (N,), which are made to sum to one.

    Raises a `ValueError` where centres are none, not finite, or no rows, or weights negative or all zero.
    """
    centres_ND = torch.as_tensor(centres).double()
    if centres_ND.ndim != 2 or len(centres_ND) == 0 or not bool(centres_ND.isfinite().all()):
        raise ValueError(f"centres have shape {tuple(centres_ND.shape)}; expected finite rows (N, D), one or more")
    N, D = centres_ND.shape
    weights_N = _shares(weights, N)
    near_NM = centres_ND
    if config.dims is not None:
        normal_DM = torch.randn(D, config.dims, generator=generator, dtype=torch.float64)
        map_DM = normal_DM / config.dims**0.5
        near_NM = centres_ND @ map_DM
    at_centres_N = density(near_NM, near_NM, weights_N, config)
    first = at_centres_N.topk(min(config.starts, N)).indices
    found_BM = mean_shift(near_NM[first], near_NM, weights_N, config, config.steps)
    promised_B = density(found_BM, near_NM, weights_N, config)
    lifted_1D = found_BM[promised_B.argmax()][None]
    if config.dims is not None:
        lifted_1D = pull(lifted_1D, near_NM, centres_ND, weights_N, config)
    point_1D = mean_shift(lifted_1D, centres_ND, weights_N, config, config.polish)
    reached = density(point_1D, centres_ND, weights_N, config)
    return Mode(point_1D[0], float(reached), float(promised_B.max()))


def _shares(weights: Tensor | None, count: int) -> Tensor:
    """Weights (N,) that sum to one, equal where none were given."""
    weights_N = torch.ones(count, dtype=torch.float64)
    if weights is not None:
        weights_N = torch.as_tensor(weights).double()
    total = weights_N.sum()
    shape = tuple(weights_N.shape)
    negative = bool((weights_N < 0).any())
    if shape != (count,) or negative or float(total) <= 0:
        raise ValueError(f"weights have shape {shape}; expected {count} numbers, not negative, not all zero")
    return weights_N / total


def example(generator: torch.Generator) -> dict[str, Any]:
    """Forty points in twenty dimensions, searched in eight."""
    centres_ND = torch.randn(40, 20, generator=generator)
    config = Config(dims=8, bandwidth=4.0)
    return {"centres": centres_ND, "config": config, "generator": generator}
