"""Beta mixture: columns between two bounds, such as shares, independent within each component.

**Equation:** p(x) = sum_k w_k prod_d u_d^(a_kd - 1) (1 - u_d)^(b_kd - 1) / (B(a_kd, b_kd) (h_d - l_d)), u = (x - l) /
(h - l). M step: psi(a) - psi(a + b) = mean of log u, psi(b) - psi(a + b) = mean of log(1 - u), the maximum of a concave
function, by Newton's steps that are halved until it rises.

**Shapes:** X (N, D), between the bounds; `weights_` (K,), `alphas_` (K, D) are a, `betas_` (K, D) are b, `bounds_` D
pairs.

**Reference:** Gnanadesikan, Pinkham, Hughes (1967), Maximum Likelihood Estimation of the Parameters of the Beta
Distribution from Smallest Order Statistics; Smithson, Verkuilen (2006), A Better Lemon Squeezer? (bounds in the data).

**Differs:** a + b is kept below `min_spread`^-2, so that no component collapses onto one value. With `bounds=None` they
are those of the data, half a row's share of the range further out.

**Fails when:** a value lies on a bound or beyond (`ValueError`).

**Cost:** O(N K D) a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import available_if
from torch import Tensor

from mixwell.core.method import method
from mixwell.density.mixtures._columns import ColumnMixture, refuse_where
from mixwell.density.mixtures._parts import MixtureConfig
from mixwell.density.mixtures.em.columns import ExponentialColumns
from mixwell.density.mixtures.em.loop import Params
from mixwell.density.mixtures.em.rows import Rows

SMALLEST = 1e-3  # a and b
STEPS, HALVINGS = 6, 12  # of Newton's method in a step of EM


class Beta(ExponentialColumns):
    """Statistics are the logarithms of the distances from the bounds, as shares of the range."""

    statistics = 2
    harmless = torch.inf
    min_spread = 1e-3

    def __init__(self, bounds_2D: Tensor, fixed: tuple[str, ...]) -> None:
        super().__init__(bounds_2D.shape[1], fixed)
        self.low_D1, self.high_D1 = bounds_2D[..., None]
        self.range_D1 = self.high_D1 - self.low_D1

    def _share(self, x_DB: Tensor) -> tuple[Tensor, Tensor]:
        """Of the range below and above a value; halves where it lies outside."""
        middle_D1 = 0.5 * (self.low_D1 + self.high_D1)
        x_DB = torch.where(self._inside(x_DB), x_DB, middle_D1)
        return (x_DB - self.low_D1) / self.range_D1, (self.high_D1 - x_DB) / self.range_D1

    def _inside(self, x_DB: Tensor) -> Tensor:
        return (x_DB > self.low_D1) & (x_DB < self.high_D1)

    def transforms(self, x_DB: Tensor) -> Sequence[Tensor]:
        below, above = self._share(x_DB)
        return below.log(), above.log()

    def log_base(self, x_DB: Tensor) -> Tensor:
        below, above = self._share(x_DB)
        base_DB = -(below.log() + above.log() + self.range_D1.log())
        possible = self._inside(x_DB) | x_DB.isinf()  # a missing value stands as an infinite one
        return base_DB.masked_fill(~possible, -torch.inf)

    def coefficients(self, params: Params) -> Sequence[Tensor]:
        a, b = params["alphas"], params["betas"]
        return a, b, -log_beta(a, b)

    def estimate(self, means: Sequence[Tensor], params: Params | None) -> Params:
        below, above = means
        one = torch.ones_like(below)
        a, b = (one, one) if params is None else (params["alphas"], params["betas"])
        held = tuple(name in self.fixed and params is not None for name in ("alphas", "betas"))
        a, b = climbed(a, b, below, above, held, self.min_spread**-2)
        return {"alphas": a, "betas": b}


def log_beta(a: Tensor, b: Tensor) -> Tensor:
    """Log of the beta function."""
    both = torch.lgamma(a + b)
    return torch.lgamma(a) + torch.lgamma(b) - both


def climbed(a: Tensor, b: Tensor, below: Tensor, above: Tensor, held: tuple[bool, ...],
            largest: float) -> tuple[Tensor, Tensor]:
    """a and b that maximise a mean(log u) + b mean(log(1 - u)) - log B(a, b); the held ones stay."""
    def value(a: Tensor, b: Tensor) -> Tensor:
        linear = a * below + b * above
        return linear - log_beta(a, b)

    best = value(a, b)
    for _ in range(STEPS):
        step_a, step_b = _newton(a, b, below, above, held)
        size = torch.ones_like(a)
        for _ in range(HALVINGS):
            new_a, new_b = a + size * step_a, b + size * step_b
            inside = (new_a >= SMALLEST) & (new_b >= SMALLEST)
            inside &= new_a + new_b <= largest
            possible_a, possible_b = new_a.clamp(min=SMALLEST), new_b.clamp(min=SMALLEST)
            new = torch.where(inside, value(possible_a, possible_b), -torch.inf)
            better = new >= best
            if bool(better.all()):
                break
            size = torch.where(better, size, size / 2)
        if not bool((new > best).any()):
            break
        a, b = torch.where(better, new_a, a), torch.where(better, new_b, b)
        best = torch.where(better, new, best)
    return a, b


def _newton(a: Tensor, b: Tensor, below: Tensor, above: Tensor, held: tuple[bool, ...]) -> tuple[Tensor, Tensor]:
    """Newton's step of a concave function of two numbers, or of the one that is not held."""
    both = torch.digamma(a + b)
    slope_a = below - torch.digamma(a) + both
    slope_b = above - torch.digamma(b) + both
    cross = torch.polygamma(1, a + b)
    curve_a = torch.polygamma(1, a) - cross
    curve_b = torch.polygamma(1, b) - cross
    if held[0] or held[1]:
        free_a, free_b = float(not held[0]), float(not held[1])
        return free_a * slope_a / curve_a, free_b * slope_b / curve_b
    determinant = curve_a * curve_b - cross**2
    step_a = (curve_b * slope_a + cross * slope_b) / determinant
    step_b = (curve_a * slope_b + cross * slope_a) / determinant
    return step_a, step_b


@dataclass(frozen=True, kw_only=True)
class Config(MixtureConfig):
    """Options beside those of every mixture."""

    bounds: Any = (0.0, 1.0)  # low and high of all columns; or None: those of the data, a little further out
    min_spread: float = 1e-3  # least size of a component against its range


def _knows_bounds(mixture: BetaMixture) -> bool:
    """Whether a batch of rows can be fitted to; an `AttributeError` that says why not."""
    if mixture.bounds is None:
        raise AttributeError("bounds=None reads the bounds off all rows, of which partial_fit sees some; give bounds.")
    return True


@method(title="Beta mixture", year=1967, tags={"estimator", "mixture", "missing", "online", "shares"})
class BetaMixture(ColumnMixture, config=Config):
    """Mixture of independent beta variables; NaN marks a missing one. Options in `Config`."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **ColumnMixture._parameter_constraints,
        "bounds": ["array-like", None],
        "min_spread": [Interval(Real, 0.0, 1.0, closed="neither")],
    }
    _attributes: ClassVar[dict[str, str]] = {"alphas": "alphas_", "betas": "betas_"}
    _fixable = ("weights", "alphas", "betas")
    _distributable = False  # bounds may be read off the rows

    def _check_input(self, rows: Rows) -> None:
        if self.bounds is None:
            return
        low, high = self._given_bounds()
        refuse_where(rows, lambda x_BD: (x_BD <= low) | (x_BD >= high),
                     f"Values on or outside the bounds in data passed to {type(self).__name__}",
                     f"expected numbers between {low:g} and {high:g}, or bounds=None")

    def _given_bounds(self) -> tuple[float, float]:
        """Low and high of all columns."""
        ends = np.asarray(self.bounds, dtype=np.float64)
        if ends.shape != (2,) or not np.isfinite(ends).all() or ends[0] >= ends[1]:
            raise ValueError(f"bounds is {self.bounds!r}; expected two finite numbers, the lower first, or None.")
        low, high = ends.tolist()
        return low, high

    @available_if(_knows_bounds)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """As the other mixtures' `partial_fit`; there is none where bounds are to be read off the rows."""
        return super().partial_fit(X, y, sample_weight)

    def _build_family(self, rows: Rows, weights_N: Tensor | None) -> Beta:
        self.bounds_ = self._bounds(rows)
        return super()._build_family(rows, weights_N)  # type: ignore[return-value]

    def _bounds(self, rows: Rows) -> list[tuple[float, float]]:
        """Low and high of every column."""
        if self.bounds is not None:
            return [self._given_bounds()] * rows.n_columns
        ends = []
        for _, chunk in rows.chunks():
            x_BD = chunk.double()
            low_D = x_BD.nan_to_num(torch.inf).amin(0)
            high_D = x_BD.nan_to_num(-torch.inf).amax(0)
            ends.append(torch.stack([low_D, high_D]))
        ends_C2D = torch.stack(ends).cpu().numpy()
        low_D, high_D = ends_C2D[:, 0].min(0), ends_C2D[:, 1].max(0)
        margin_D = 0.5 * np.where(high_D > low_D, high_D - low_D, 1.0) / rows.n_rows
        lows, highs = low_D - margin_D, high_D + margin_D
        return list(zip(lows.tolist(), highs.tolist()))

    def _family(self, columns: int, device: torch.device) -> Beta:
        bounds_D2 = torch.tensor(self.bounds_, dtype=torch.float64, device=device)
        family = Beta(bounds_D2.T, self._fixed())
        family.min_spread = self.min_spread
        return family

    def _variates(self, rng: np.random.RandomState, **params_ND: np.ndarray) -> np.ndarray:
        low_D, high_D = np.array(self.bounds_).T
        share_ND = rng.beta(params_ND["alphas"], params_ND["betas"])
        return low_D + (high_D - low_D) * share_ND


def example(generator: torch.Generator) -> dict[str, Any]:
    """Shares of two kinds of rows."""
    centres_2D = torch.tensor([[-1.5, 1.0], [1.5, -0.5]], dtype=torch.float64)
    centres_ND = centres_2D.repeat_interleave(80, 0)
    noise_ND = torch.randn(160, 2, generator=generator, dtype=torch.float64)
    x_ND = torch.sigmoid(centres_ND + 0.6 * noise_ND)
    return {"estimator": BetaMixture(2, random_state=0), "X": x_ND.numpy()}
