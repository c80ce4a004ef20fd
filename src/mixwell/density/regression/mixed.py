"""Mixed mixture of experts: random effects of groups enter gates and experts, for multilevel data.

**Equation:** p(y_g | x_g) = integral prod_{n in g} sum_k pi_k(x_n, u) N(y_n; m_k(x_n, u), s_k^2) N(u; 0, 1) du, with
pi(x, u) = softmax(w_0 + W x + v u) and m_k = b_k0 + b_k . x + u (c_k0 + c_k . x). Gauss-Hermite nodes u_q with weights
h_q make the group effect a latent class of known shares, so that EM is exact for the quadrature: P_gq proportional to
h_q prod_n sum_k pi_k N_k at u_q, and the M step fits gates and experts to every row at every node with weights
P_gq r_nqk. Nested: a second effect of the inner group, integrated inside the outer one, enters the same way.

**Shapes:** X (N, D), y (N,), groups (N,) or, nested, (N, 2) outer and inner labels; `gate_coef_` (K, 1 + D + levels),
`coef_` (K, P, 1) with columns 1, x, u, u x (, v, v x).

**Reference:** Fung and Tseung (2022), Mixture of experts models for multilevel data: modelling framework and
approximation theory, arXiv:2209.15207.

**Differs:** written from memory of the paper, whose denseness needs random effects in the gates alone
(`effects="gate"`); the theory leaves estimation open. One normal effect a level; factors are nested or single, not
crossed.

**Fails when:** groups are so large that the posterior of an effect falls between two nodes (raise `n_nodes`); there are
only a few groups.

**Cost:** O(N Q K (K P^2)) a step with Q nodes, Q^2 nested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import logsumexp, softmax
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, check_X_y

from mixwell.core.method import method
from mixwell.density._ascent import ascend, highest
from mixwell.density._gaussian import Array
from mixwell.density._options import Configured
from mixwell.density.regression._parts import (
    GaussianExperts,
    Params,
    Problem,
    SoftmaxGates,
    check_common,
    start,
    with_intercept,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the mixed mixture of experts."""

    n_experts: int = 2  # K
    effects: Literal["both", "gate", "experts", "none"] = "both"  # where the random effects enter
    random_slope: bool = True  # whether experts' slopes vary with the effect, not their intercepts alone
    n_nodes: int = 9  # Gauss-Hermite nodes a level
    ridge: float = 1e-2  # penalty on squared gate slopes, in nats
    reg_covar: float = 1e-6  # smallest variance of an expert, as a share of y's variance
    tol: float = 1e-5  # stop when a step gains less, in nats a row
    max_iter: int = 200
    n_init: int = 1  # starts; the likeliest is kept
    init: str = "kmeans"  # "kmeans" or "random" (cells of random rows)
    random_state: Any = None  # of the starts

    def __post_init__(self) -> None:
        check_common(self)
        if self.effects not in ("both", "gate", "experts", "none"):
            raise ValueError(f"effects is {self.effects!r}; expected 'both', 'gate', 'experts' or 'none'")
        if self.n_nodes < 1 or self.ridge < 0 or self.reg_covar <= 0:
            raise ValueError(f"n_nodes is {self.n_nodes}, ridge {self.ridge}, reg_covar {self.reg_covar}; expected at "
                             "least 1, at least 0, and above 0")


@dataclass(frozen=True)
class Grid:
    """Quadrature of an outer effect (A nodes) and an inner one (B nodes; one node at zero where there is none)."""

    effects_ABL: Array  # values of the L effects at every pair of nodes
    log_outer_A: Array  # log weights
    log_inner_B: Array

    @classmethod
    def of(cls, n_nodes: int, levels: int) -> Grid:
        """Nodes and weights of standard normal effects."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(n_nodes)
        log_weights = np.log(weights / weights.sum())
        if levels == 1:
            return cls(nodes[:, None, None], log_weights, np.zeros(1))
        return cls(np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1), log_weights, log_weights)


@dataclass(frozen=True)
class Groups:
    """Rows' inner groups, and inner groups' outer ones, as numbers."""

    inner_N: Array
    outer_H: Array
    outer_names: Array
    inner_names: Array  # (H, levels)

    @classmethod
    def of(cls, labels: Any) -> Groups:
        """From labels (N,), or (N, 2) where the second is nested in the first."""
        labels = np.asarray(labels).reshape(len(labels), -1)
        if labels.shape[1] > 2:
            raise ValueError(f"groups has {labels.shape[1]} columns; expected one, or outer and inner labels")
        inner_names, inner_N = np.unique(labels, axis=0, return_inverse=True)
        outer_names, outer_H = np.unique(inner_names[:, 0], return_inverse=True)
        return cls(inner_N.reshape(-1), outer_H, outer_names, inner_names)

    @property
    def levels(self) -> int:
        """One, or two where groups are nested."""
        return self.inner_names.shape[1]


def integrate(log_NAB: Array, groups: Groups, grid: Grid) -> tuple[Array, Array, Array]:
    """Log-likelihoods of outer groups, and posteriors of outer nodes (G, A) and of inner ones given those (H, A, B).

    `log_NAB` is the log density of every row at every pair of nodes.
    """
    H, G = len(groups.outer_H), len(groups.outer_names)
    log_HAB = np.zeros((H, *log_NAB.shape[1:]))
    np.add.at(log_HAB, groups.inner_N, log_NAB)
    log_HAB += grid.log_inner_B
    log_GA = np.zeros((G, log_NAB.shape[1]))
    np.add.at(log_GA, groups.outer_H, logsumexp(log_HAB, axis=2))
    log_GA += grid.log_outer_A
    return logsumexp(log_GA, axis=1), softmax(log_GA, axis=1), softmax(log_HAB, axis=2)


def designs(z_ND: Array, grid: Grid, config: Config) -> tuple[Array, Array]:
    """Designs of gates and experts for every row at every pair of nodes, rows slowest (N A B, P)."""
    A, B, L = grid.effects_ABL.shape
    h_RP = np.repeat(with_intercept(z_ND), A * B, axis=0)
    effects_RL = np.tile(grid.effects_ABL.reshape(A * B, L), (len(z_ND), 1))
    gate_RP, expert_RP = h_RP, h_RP
    if config.effects in ("both", "gate"):
        gate_RP = np.column_stack([h_RP, effects_RL])
    if config.effects in ("both", "experts"):
        factors = h_RP if config.random_slope else h_RP[:, :1]
        expert_RP = np.column_stack([h_RP, *(factors * u[:, None] for u in effects_RL.T)])
    return gate_RP, expert_RP


@method(
    title="Mixed mixture of experts",
    paper="Mixture of experts models for multilevel data: modelling framework and approximation theory",
    year=2022,
    tags={"estimator", "em"},
)
class MixedMixtureOfExperts(Configured, config=Config):
    """Softmax-gated linear experts with random effects of groups; see the module's card and `Config`."""

    def fit(self, X: Any, y: Any, groups: Any) -> MixedMixtureOfExperts:
        """Fit to X (N, D), y (N,), and the rows' groups (N,) or (N, 2), inner groups nested in outer ones."""
        self._options: Config = self._config()
        x_ND, y_N = check_X_y(X, y, dtype=np.float64, y_numeric=True)
        known = _grouped(groups, len(x_ND))
        self.shift_, spread_D = x_ND.mean(0), x_ND.std(0)
        self.scale_ = np.where(spread_D > 0, spread_D, 1.0)
        self._grid = Grid.of(self._options.n_nodes, known.levels)
        problem = self._problem(x_ND, y_N)
        rng = check_random_state(self._options.random_state)
        runs = []
        for _ in range(self._options.n_init):
            resp_NK = start(x_ND, y_N[:, None], self._options.n_experts, self._options.init, rng)
            nodes_NAB = _first_nodes(y_N, known, self._grid)
            params = problem.maximise((nodes_NAB[..., None] * resp_NK[:, None, None]).reshape(-1, resp_NK.shape[1]),
                                      None)
            runs.append(ascend(lambda p: self._step(problem, known, p), params, tol=self._options.tol,
                               max_iter=self._options.max_iter))
        run = highest(runs)
        self._params: Params = run.state
        self.gate_coef_, self.coef_ = run.state["gate_coef"], run.state["coef"]
        self.covariances_ = run.state["covariances"]
        self.lower_bounds_, self.converged_, self.n_iter_ = run.bounds, run.converged, len(run.bounds)
        _, outer_GA, inner_HAB = integrate(self._rows(problem, self._params), known, self._grid)
        self._outer = dict(zip(known.outer_names.tolist(), outer_GA))
        self._inner = dict(zip(map(tuple, known.inner_names.tolist()), inner_HAB))
        return self

    def _problem(self, x_ND: Array, y_N: Array) -> Problem:
        gate_RP, expert_RP = designs((x_ND - self.shift_) / self.scale_, self._grid, self._options)
        y_R1 = np.repeat(y_N, len(gate_RP) // len(x_ND))[:, None]
        floor = self._options.reg_covar * max(float(y_N.var()), 1e-300)
        return Problem(SoftmaxGates(self._options.ridge), GaussianExperts(floor), gate_RP, expert_RP, y_R1)

    def _rows(self, problem: Problem, params: Params) -> Array:
        A, B, _ = self._grid.effects_ABL.shape
        return logsumexp(problem.log_joint(params), axis=1).reshape(-1, A, B)

    def _step(self, problem: Problem, groups: Groups, params: Params) -> tuple[Params, float]:
        log_RK = problem.log_joint(params)
        A, B, _ = self._grid.effects_ABL.shape
        log_G, outer_GA, inner_HAB = integrate(logsumexp(log_RK, axis=1).reshape(-1, A, B), groups, self._grid)
        node_NAB = outer_GA[groups.outer_H[groups.inner_N]][:, :, None] * inner_HAB[groups.inner_N]
        new = problem.maximise(softmax(log_RK, axis=1) * node_NAB.reshape(-1, 1), params)
        return new, (float(log_G.sum()) - problem.gates.penalty(params)) / len(groups.inner_N)

    def log_likelihood(self, X: Any, y: Any, groups: Any) -> Array:
        """log p(y_g | x_g) of every outer group of these rows, in the order of sorted labels, in nats."""
        check_is_fitted(self)
        x_ND, y_N = check_X_y(X, y, dtype=np.float64, y_numeric=True)
        known = _grouped(groups, len(x_ND))
        if known.levels != self._grid.effects_ABL.shape[2]:
            raise ValueError(f"groups has {known.levels} levels; the model was fitted with "
                             f"{self._grid.effects_ABL.shape[2]}")
        return integrate(self._rows(self._problem(x_ND, y_N), self._params), known, self._grid)[0]

    def predict(self, X: Any, groups: Any = None) -> Array:
        """Mean of y (N,): over the posterior of the effects of groups seen in `fit`, else over their prior."""
        check_is_fitted(self)
        x_ND = check_array(X, dtype=np.float64)
        problem = self._problem(x_ND, np.zeros(len(x_ND)))
        gates_RK = np.exp(problem.gates.log_joint(problem.gate_NP, self._params))
        mean_RK = problem.experts.mean(problem.expert_NP, self._params)[..., 0]
        A, B, _ = self._grid.effects_ABL.shape
        mean_NAB = (gates_RK * mean_RK).sum(1).reshape(-1, A, B)
        prior_AB = np.exp(self._grid.log_outer_A)[:, None] * np.exp(self._grid.log_inner_B)
        if groups is None:
            return np.einsum("nab,ab->n", mean_NAB, prior_AB)
        names = np.asarray(groups).reshape(len(x_ND), -1).tolist()
        node_NAB = np.stack([self._outer.get(n[0], np.exp(self._grid.log_outer_A))[:, None]
                             * self._inner.get(tuple(n), np.exp(self._grid.log_inner_B)[None]) for n in names])
        return np.einsum("nab,nab->n", mean_NAB, node_NAB)

    def score(self, X: Any, y: Any, groups: Any = None) -> float:
        """R^2 of `predict`."""
        y = np.asarray(y, dtype=np.float64)
        return float(1 - ((y - self.predict(X, groups)) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def _grouped(groups: Any, rows: int) -> Groups:
    if len(np.asarray(groups)) != rows:
        raise ValueError(f"groups has {len(np.asarray(groups))} entries for {rows} rows; give one a row")
    return Groups.of(groups)


def _first_nodes(y_N: Array, groups: Groups, grid: Grid) -> Array:
    """Node probabilities (N, A, B) to begin with, from standardised means of the groups."""
    def posterior(value_N: Array, index_N: Array, nodes: Array, log_weights: Array) -> tuple[Array, Array]:
        count = np.bincount(index_N)
        mean = np.bincount(index_N, value_N) / np.maximum(count, 1)
        spread = mean.std() or 1.0
        score = (mean - mean.mean()) / spread
        return softmax(log_weights - 2.0 * (nodes - score[:, None]) ** 2, axis=1)[index_N], mean[index_N]

    outer_N = groups.outer_H[groups.inner_N]
    outer_NA, mean_N = posterior(y_N, outer_N, grid.effects_ABL[:, 0, 0], grid.log_outer_A)
    if groups.levels == 1:
        return outer_NA[:, :, None]
    inner_NB, _ = posterior(y_N - mean_N, groups.inner_N, grid.effects_ABL[0, :, 1], grid.log_inner_B)
    return outer_NA[:, :, None] * inner_NB[:, None, :]


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twelve groups of eight rows with an intercept of their own."""
    groups = torch.arange(12).repeat_interleave(8)
    x_ND = torch.randn(96, 1, generator=generator, dtype=torch.float64)
    effect_N = torch.randn(12, generator=generator, dtype=torch.float64)[groups]
    noise_N = 0.1 * torch.randn(96, generator=generator, dtype=torch.float64)
    return {"estimator": MixedMixtureOfExperts(random_state=0, n_nodes=5), "X": x_ND.numpy(),
            "y": (x_ND[:, 0].abs() + effect_N + noise_N).numpy(), "groups": groups.numpy()}
