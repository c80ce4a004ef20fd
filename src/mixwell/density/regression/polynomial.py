"""Mixture of polynomial experts: m experts, each a regression of order k in an exponential family, under softmax gates.

**Equation:** p(y | x) = sum_j pi_j(x) f(y; h_j(x)), pi(x) = softmax(v_j0 + v_j . x), h_j a polynomial of order k, and f
normal (mean h), Poisson (rate exp h) or Bernoulli (odds exp h). EM: r_nj proportional to pi_j(x_n) f(y_n; h_j(x_n));
the M step is a weighted multinomial regression for the gates and a weighted regression for every expert.

**Shapes:** X (N, D), y (N,) or (N, Q); `gate_coef_` (K, 1 + D); `coef_` (K, 1 + k D, Q) normal, (K, 1 + k D) Poisson,
(K, 2, 1 + k D) Bernoulli, all for standardised columns.

**Reference:** Mendes and Jiang (2011), Convergence Rates for Mixture-of-Experts, arXiv:1110.2058; EM as in Jordan and
Jacobs (1994).

**Differs:** written from memory of the paper. Polynomials have no cross terms between columns. The normal experts'
variance is estimated, one an expert, where the theory holds it fixed. `ridge` keeps gates (and Poisson or Bernoulli
experts) finite where regions can be separated perfectly; it is part of the likelihood that EM climbs.

**Fails when:** orders above three or so meet rows outside the range that was fitted; m k grows faster than N.

**Cost:** O(N K (K D^2 + k^2 D^2)) a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from mixwell.core.method import method
from mixwell.density._gaussian import Array
from mixwell.density.regression._parts import (
    Experts,
    GatedRegressor,
    GaussianExperts,
    MultinomialExperts,
    PoissonExperts,
    SoftmaxGates,
    check_common,
    powers,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the mixture of polynomial experts; `ValueError` for one out of range."""

    n_experts: int = 2  # m
    degree: int = 1  # k: order of the experts' polynomials; 0 is a constant
    family: Literal["gaussian", "poisson", "bernoulli"] = "gaussian"  # f
    ridge: float = 1e-3  # penalty on squared slopes of gates and of Poisson or Bernoulli experts, in nats
    reg_covar: float = 1e-6  # smallest variance of a normal expert, as a share of y's variance
    tol: float = 1e-6  # stop when a step gains less, in nats a row
    max_iter: int = 300
    n_init: int = 1  # starts; the likeliest is kept
    init: str = "kmeans"  # "kmeans" or "random" (cells of random rows)
    random_state: Any = None  # of the starts

    def __post_init__(self) -> None:
        check_common(self)
        if self.degree < 0:
            raise ValueError(f"degree is {self.degree}; expected 0 or more")
        if self.family not in ("gaussian", "poisson", "bernoulli"):
            raise ValueError(f"family is {self.family!r}; expected 'gaussian', 'poisson' or 'bernoulli'")
        if self.ridge < 0:
            raise ValueError(f"ridge is {self.ridge}; expected 0 or more")
        if self.reg_covar <= 0:
            raise ValueError(f"reg_covar is {self.reg_covar}; expected a number above 0")


@method(
    title="Mixture of polynomial experts",
    paper="Convergence Rates for Mixture-of-Experts",
    year=2011,
    tags={"estimator", "em", "responsibilities", "sklearn"},
)
class PolynomialExperts(GatedRegressor, config=Config):
    """Softmax-gated mixture of polynomial regressions; see the module's card and `Config`.

    With `family="bernoulli"` y holds zeros and ones and `predict` gives the probability of a one; with "poisson" y
    holds counts and `predict` gives the rate.
    """

    def fit(self, X: Any, y: Any) -> PolynomialExperts:
        """Fit to X (N, D) and y (N,) or (N, Q).

        Raises a `ValueError` where options or data are none that can be fitted, or y holds what the family cannot.
        """
        config = self._config()
        x_ND, y_NQ = self._read(X, y)
        self._degree = config.degree
        self._family = config.family
        target = self._targets(y_NQ)
        gates = SoftmaxGates(config.ridge)
        experts = self._build(y_NQ, config)
        self._fit_gated(x_ND, target, y_NQ, gates, experts, config)
        return self

    def _build(self, y_NQ: Array, config: Config) -> Experts:
        """The experts of the family."""
        if config.family == "gaussian":
            variance = float(y_NQ.var(0).mean())
            floor = config.reg_covar * max(variance, 1e-300)
            return GaussianExperts(floor)
        columns = y_NQ.shape[1]
        if columns != 1:
            raise ValueError(f"y has {columns} columns; family {config.family!r} takes one")
        if config.family == "poisson":
            return PoissonExperts(config.ridge)
        return MultinomialExperts(2, config.ridge)

    def _targets(self, y: Any) -> Array:
        y_NQ = super()._targets(y)
        if self._family == "gaussian":
            return y_NQ
        counts = self._family == "poisson"
        largest = np.inf if counts else 1
        outside = (y_NQ < 0) | (y_NQ > largest)
        broken = y_NQ != np.floor(y_NQ)
        wrong = outside | broken
        if wrong.any():
            kind = "counts" if counts else "zeros and ones"
            raise ValueError(f"y holds {y_NQ[wrong][0]:g}; family {self._family!r} takes {kind}")
        return y_NQ if counts else y_NQ[:, 0].astype(int)

    def _expert_design(self, z_ND: Array) -> Array:
        return powers(z_ND, self._degree)

    def _mixed(self, X: Any) -> Array:
        mean_NQ = super()._mixed(X)
        return mean_NQ[:, 1:] if self._family == "bernoulli" else mean_NQ


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two lines that meet at zero."""
    uniform_ND = torch.rand(80, 1, generator=generator, dtype=torch.float64)
    normal_N = torch.randn(80, generator=generator, dtype=torch.float64)
    x_ND = uniform_ND * 2 - 1
    clean_N = x_ND[:, 0].abs()
    y_N = clean_N + 0.05 * normal_N
    estimator = PolynomialExperts(random_state=0)
    return {
        "estimator": estimator,
        "X": x_ND.numpy(),
        "y": y_N.numpy(),
    }
