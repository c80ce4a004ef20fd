"""Localised mixture of experts: Gaussian gates, polynomial normal experts, block-diagonal covariances, and a choice.

**Equation:** s(y | x) = sum_k g_k(x) N(y; v_k(x), Sigma_k),  g_k(x) = pi_k N(x; c_k, Gamma_k) / sum_l pi_l N(x; c_l,
Gamma_l), v_k a polynomial (GLoME), Sigma_k zero outside blocks of responses (BLoME). EM on log pi_k N(x) N(y | x) has
closed forms. Of a collection m of models the chosen one minimises  -log-likelihood + 2 kappa dim(m), where kappa is the
slope of the maximal log-likelihood against the dimension among large models (`density.selection.slope_heuristic`).

**Shapes:** X (N, D), y (N,) or (N, Q); `gate_means_` (K, D), `gate_covariances_` (K, D, D), `coef_` (K, 1 + k D, Q),
`covariances_` (K, Q, Q), `candidates_` (one record a model that was tried).

**Reference:** T. Nguyen, H. D. Nguyen, Chamroukhi, Forbes (2021), A non-asymptotic approach for model selection via
penalization in high-dimensional mixture of experts models, arXiv:2104.02640; EM as in Xu, Jordan, Hinton (1994); slope
heuristic as in Baudry, Maugis, Michel (2012).

**Differs:** written from memory of the paper. EM maximises the likelihood of x and y together; the choice uses that of
y given x, as the paper's bound does. Blocks are the connected components of the largest residual correlations over
experts, the same for all experts. Polynomials have no cross terms.

**Fails when:** the collection stops where the likelihood still bends: the slope is then too steep and the choice too
small; columns of X are nearly dependent in a region.

**Cost:** O(N K (D^2 + k^2 D^2 + Q^2)) a step and model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components

from mixwell.core.method import method
from mixwell.density._gaussian import Array, outer
from mixwell.density.regression._parts import (
    GatedRegressor,
    GaussianExperts,
    GaussianGates,
    check_common,
    powers,
)
from mixwell.density.selection.slope_heuristic import slope_heuristic

Blocks = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the localised mixture of experts; a tuple is a collection to choose from.

    `ValueError` for a value out of range.
    """

    n_experts: int | tuple[int, ...] = 2  # K
    degree: int | tuple[int, ...] = 1  # order of the experts' polynomials
    block_threshold: float | tuple[float, ...] = 0.0  # residual correlations up to it are zero; 0: full, 1: diagonal
    criterion: Literal["slope", "bic", "likelihood"] = "slope"  # how a collection is judged
    reg_covar: float = 1e-6  # smallest variance, as a share of the data's
    tol: float = 1e-6  # stop when a step gains less, in nats a row
    max_iter: int = 300
    n_init: int = 1  # starts a model; the likeliest is kept
    init: str = "kmeans"  # "kmeans" or "random" (cells of random rows)
    random_state: Any = None  # of the starts

    def __post_init__(self) -> None:
        for n_experts, degree, threshold in self.collection():
            within = 0 <= threshold <= 1
            if n_experts < 1 or degree < 0 or not within:
                raise ValueError(f"n_experts is {n_experts}, degree {degree}, block_threshold {threshold}; expected at "
                                 "least 1, at least 0, and 0 to 1")
        criteria = ("slope", "bic", "likelihood")
        if self.criterion not in criteria:
            raise ValueError(f"criterion is {self.criterion!r}; expected 'slope', 'bic' or 'likelihood'")
        if self.reg_covar <= 0:
            raise ValueError(f"reg_covar is {self.reg_covar}; expected a number above 0")

    def collection(self) -> list[tuple[int, int, float]]:
        """(n_experts, degree, block_threshold) of every model."""
        experts = _as_tuple(self.n_experts)
        degrees = _as_tuple(self.degree)
        thresholds = _as_tuple(self.block_threshold)
        models = []
        for n_experts, degree, threshold in product(experts, degrees, thresholds):
            model = int(n_experts), int(degree), float(threshold)
            models.append(model)
        return models


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if isinstance(value, (tuple, list)):
        return tuple(value)
    return (value,)


@dataclass(frozen=True)
class One:
    """Options of one model, as the shared fit reads them."""

    n_experts: int
    tol: float
    max_iter: int
    n_init: int
    init: str
    random_state: Any

    def __post_init__(self) -> None:
        check_common(self)


def residual_blocks(covariances_KQQ: Array, threshold: float) -> Blocks:
    """Groups of responses that any expert correlates beyond `threshold`."""
    variance_KQ = np.einsum("kqq->kq", covariances_KQQ)
    scale_KQ = np.sqrt(variance_KQ)
    scale_KQQ = outer(scale_KQ, scale_KQ)
    correlation_KQQ = np.abs(covariances_KQQ / scale_KQQ)
    linked_QQ = correlation_KQQ.max(0) > threshold
    count, labels_Q = connected_components(linked_QQ, directed=False)
    blocks = []
    for i in range(count):
        group = np.flatnonzero(labels_Q == i)
        blocks.append(tuple(map(int, group)))
    return tuple(blocks)


@method(
    title="Localised mixture of experts",
    paper="A non-asymptotic approach for model selection via penalization in high-dimensional mixture of experts "
          "models",
    year=2021,
    tags={"estimator", "em", "responsibilities", "sklearn"},
)
class LocalizedMixtureOfExperts(GatedRegressor, config=Config):
    """Gaussian-gated mixture of polynomial regressions; see the module's card and `Config`.

    Where a tuple is given, every model of the collection is fitted; `candidates_` lists of each its options,
    `dimension`, `log_likelihood` (nats, of y given X), and `kappa_` the slope that was found (NaN for other criteria).
    """

    def fit(self, X: Any, y: Any) -> LocalizedMixtureOfExperts:
        """Fit to X (N, D) and y (N,) or (N, Q); a `ValueError` where options or data are none that can be fitted."""
        config = self._config()
        x_ND, y_NQ = self._read(X, y)
        candidates: list[dict[str, Any]] = []
        states = []
        for n_experts, degree, threshold in config.collection():
            self._fit_one(x_ND, y_NQ, config, n_experts, degree, threshold)
            log_likelihood_N = self.log_likelihood(x_ND, y_NQ)
            record = {"n_experts": n_experts, "degree": degree, "block_threshold": threshold}
            record["dimension"] = self.n_parameters()
            record["log_likelihood"] = float(log_likelihood_N.sum())
            candidates.append(record)
            states.append(dict(vars(self)))
        chosen, kappa = self._choose(config, candidates, len(x_ND))
        for name, value in states[chosen].items():
            setattr(self, name, value)
        self.candidates_ = candidates
        self.kappa_ = kappa
        self.n_experts_ = len(self.coef_)
        return self

    def _choose(self, config: Config, candidates: list[dict[str, Any]], rows: int) -> tuple[int, float]:
        """Number of the model to keep, and the slope that was found."""
        if len(candidates) == 1:
            return 0, math.nan
        dimension = np.array([record["dimension"] for record in candidates], dtype=float)
        value = np.array([record["log_likelihood"] for record in candidates])
        if config.criterion == "slope":
            chosen, kappa, _ = slope_heuristic(value, dimension)
            return chosen, kappa
        price = 0.0
        if config.criterion == "bic":
            price = 0.5 * np.log(rows)
        penalised = value - price * dimension
        best = np.argmax(penalised)
        return int(best), math.nan

    def _fit_one(self, x_ND: Array, y_NQ: Array, config: Config, n_experts: int, degree: int, threshold: float) -> None:
        """Fit one model of the collection, with blocks that a fit without them suggests."""
        one = One(n_experts, config.tol, config.max_iter, config.n_init, config.init, config.random_state)
        self._degree = degree
        gates = GaussianGates(config.reg_covar)
        variance = float(y_NQ.var(0).mean())
        floor = config.reg_covar * max(variance, 1e-300)
        responses = range(y_NQ.shape[1])
        whole: Blocks = (tuple(responses),)
        self.blocks_ = tuple((q,) for q in responses) if threshold == 1 else whole
        experts = GaussianExperts(floor, self.blocks_)
        self._fit_gated(x_ND, y_NQ, y_NQ, gates, experts, one)
        if 0 < threshold < 1:
            self.blocks_ = residual_blocks(self.covariances_, threshold)
            experts = GaussianExperts(floor, self.blocks_)
            self._fit_gated(x_ND, y_NQ, y_NQ, gates, experts, one)

    def _gate_design(self, z_ND: Array) -> Array:
        return z_ND

    def _expert_design(self, z_ND: Array) -> Array:
        return powers(z_ND, self._degree)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two lines that meet at zero."""
    uniform_ND = torch.rand(80, 1, generator=generator, dtype=torch.float64)
    normal_N = torch.randn(80, generator=generator, dtype=torch.float64)
    x_ND = uniform_ND * 2 - 1
    clean_N = x_ND[:, 0].abs()
    y_N = clean_N + 0.05 * normal_N
    estimator = LocalizedMixtureOfExperts(random_state=0)
    return {
        "estimator": estimator,
        "X": x_ND.numpy(),
        "y": y_N.numpy(),
    }
