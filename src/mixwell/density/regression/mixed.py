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
from mixwell.density._ascent import Run, ascend, highest
from mixwell.density._gaussian import Array
from mixwell.density._options import Configured
from mixwell.density.regression._fits import start
from mixwell.density.regression._parts import (
    GaussianExperts,
    Params,
    Problem,
    SoftmaxGates,
    check_common,
    with_intercept,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the mixed mixture of experts; `ValueError` for one out of range."""

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
        if self.n_nodes < 1:
            raise ValueError(f"n_nodes is {self.n_nodes}; expected at least 1")
        if self.ridge < 0:
            raise ValueError(f"ridge is {self.ridge}; expected 0 or more")
        if self.reg_covar <= 0:
            raise ValueError(f"reg_covar is {self.reg_covar}; expected a number above 0")


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
        share = weights / weights.sum()
        log_weights = np.log(share)
        if levels == 1:
            single = nodes[:, None, None]
            return cls(single, log_weights, np.zeros(1))
        axes = np.meshgrid(nodes, nodes, indexing="ij")
        pairs = np.stack(axes, axis=-1)
        return cls(pairs, log_weights, log_weights)

    @property
    def size(self) -> tuple[int, int]:
        """A and B."""
        return len(self.log_outer_A), len(self.log_inner_B)

    @property
    def levels(self) -> int:
        """One, or two where groups are nested."""
        return self.effects_ABL.shape[2]


@dataclass(frozen=True)
class Groups:
    """Rows' inner groups, and inner groups' outer ones, as numbers."""

    inner_N: Array
    outer_H: Array
    outer_names: Array
    inner_names: Array  # (H, levels)

    @classmethod
    def of(cls, labels: Any) -> Groups:
        """From labels (N,), or (N, 2) where the second is nested in the first; a `ValueError` for more columns."""
        labels = np.asarray(labels)
        labels = labels.reshape(len(labels), -1)
        columns = labels.shape[1]
        if columns > 2:
            raise ValueError(f"groups has {columns} columns; expected one, or outer and inner labels")
        inner_names, inner_N = np.unique(labels, axis=0, return_inverse=True)
        outer_names, outer_H = np.unique(inner_names[:, 0], return_inverse=True)
        return cls(inner_N.reshape(-1), outer_H, outer_names, inner_names)

    @property
    def outer_N(self) -> Array:
        """Rows' outer groups."""
        return self.outer_H[self.inner_N]

    @property
    def levels(self) -> int:
        """One, or two where groups are nested."""
        return self.inner_names.shape[1]


def integrate(log_NAB: Array, groups: Groups, grid: Grid) -> tuple[Array, Array, Array]:
    """Log-likelihoods of outer groups, and posteriors of outer nodes (G, A) and of inner ones given those (H, A, B).

    `log_NAB` is the log density of every row at every pair of nodes.
    """
    _, A, B = log_NAB.shape
    log_HAB = np.zeros((len(groups.outer_H), A, B))
    np.add.at(log_HAB, groups.inner_N, log_NAB)
    log_HAB += grid.log_inner_B
    log_HA = logsumexp(log_HAB, axis=2)
    log_GA = np.zeros((len(groups.outer_names), A))
    np.add.at(log_GA, groups.outer_H, log_HA)
    log_GA += grid.log_outer_A
    return logsumexp(log_GA, axis=1), softmax(log_GA, axis=1), softmax(log_HAB, axis=2)


def designs(z_ND: Array, grid: Grid, config: Config) -> tuple[Array, Array]:
    """Designs of gates and experts for every row at every pair of nodes, rows slowest (N A B, P)."""
    A, B = grid.size
    h_RP = np.repeat(with_intercept(z_ND), A * B, axis=0)
    effects_ML = grid.effects_ABL.reshape(A * B, -1)
    effects_RL = np.tile(effects_ML, (len(z_ND), 1))
    gate_RP, expert_RP = h_RP, h_RP
    if config.effects in ("both", "gate"):
        gate_RP = np.column_stack([h_RP, effects_RL])
    if config.effects in ("both", "experts"):
        factors = h_RP if config.random_slope else h_RP[:, :1]
        varying = [factors * effect_R[:, None] for effect_R in effects_RL.T]
        expert_RP = np.column_stack([h_RP, *varying])
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
        """Fit to X (N, D), y (N,), and the rows' groups (N,) or (N, 2), inner groups nested in outer ones.

        Raises a `ValueError` where options or data are none that can be fitted, or there is not one group a row.
        """
        self._options: Config = self._config()
        x_ND, y_N = check_X_y(X, y, dtype=np.float64, y_numeric=True)
        known = _grouped(groups, len(x_ND))
        spread_D = x_ND.std(0)
        self.shift_ = x_ND.mean(0)
        self.scale_ = np.where(spread_D > 0, spread_D, 1.0)
        self._grid = Grid.of(self._options.n_nodes, known.levels)
        problem = self._problem(x_ND, y_N)
        nodes_NAB = _first_nodes(y_N, known, self._grid)
        rng = check_random_state(self._options.random_state)
        runs = []
        for _ in range(self._options.n_init):
            resp_NK = start(x_ND, y_N[:, None], self._options.n_experts, self._options.init, rng)
            resp_NABK = nodes_NAB[..., None] * resp_NK[:, None, None]
            first = problem.maximise(resp_NABK.reshape(-1, resp_NK.shape[1]), None)
            run = ascend(lambda params: self._step(problem, known, params), first, tol=self._options.tol,
                         max_iter=self._options.max_iter)
            runs.append(run)
        self._publish(highest(runs))
        self._remember(problem, known)
        return self

    def _publish(self, run: Run[Params]) -> None:
        self._params: Params = run.state
        self.gate_coef_ = run.state["gate_coef"]
        self.coef_ = run.state["coef"]
        self.covariances_ = run.state["covariances"]
        self.lower_bounds_ = run.bounds
        self.converged_ = run.converged
        self.n_iter_ = len(run.bounds)

    def _remember(self, problem: Problem, groups: Groups) -> None:
        """Keep the posterior of every group's effects, by its labels."""
        log_RK = problem.log_joint(self._params)
        log_NAB = self._by_node(log_RK)
        _, outer_GA, inner_HAB = integrate(log_NAB, groups, self._grid)
        outer_names = groups.outer_names.tolist()
        inner_names = groups.inner_names.tolist()
        self._outer = dict(zip(outer_names, outer_GA))
        self._inner = dict(zip(map(tuple, inner_names), inner_HAB))

    def _problem(self, x_ND: Array, y_N: Array) -> Problem:
        options = self._options
        z_ND = (x_ND - self.shift_) / self.scale_
        gate_RP, expert_RP = designs(z_ND, self._grid, options)
        A, B = self._grid.size
        y_R = np.repeat(y_N, A * B)
        variance = float(y_N.var())
        floor = options.reg_covar * max(variance, 1e-300)
        gates = SoftmaxGates(options.ridge)
        experts = GaussianExperts(floor)
        return Problem(gates, experts, gate_RP, expert_RP, y_R[:, None])

    def _by_node(self, log_RK: Array) -> Array:
        """Log densities of rows at every pair of nodes (N, A, B)."""
        log_R = logsumexp(log_RK, axis=1)
        return log_R.reshape(-1, *self._grid.size)

    def _step(self, problem: Problem, groups: Groups, params: Params) -> tuple[Params, float]:
        """New parameters, and the mean penalised log-likelihood of the old ones."""
        log_RK = problem.log_joint(params)
        log_G, outer_GA, inner_HAB = integrate(self._by_node(log_RK), groups, self._grid)
        outer_NA1 = outer_GA[groups.outer_N][:, :, None]
        node_NAB = outer_NA1 * inner_HAB[groups.inner_N]
        resp_RK = softmax(log_RK, axis=1) * node_NAB.reshape(-1, 1)
        new = problem.maximise(resp_RK, params)
        bound = float(log_G.sum()) - problem.gates.penalty(params)
        return new, bound / len(groups.inner_N)

    def log_likelihood(self, X: Any, y: Any, groups: Any) -> Array:
        """log p(y_g | x_g) of every outer group of these rows, in the order of sorted labels, in nats.

        Raises a `ValueError` where there is not one group a row, or groups have other levels than in fitting.
        """
        check_is_fitted(self)
        x_ND, y_N = check_X_y(X, y, dtype=np.float64, y_numeric=True)
        known = _grouped(groups, len(x_ND))
        expected = self._grid.levels
        if known.levels != expected:
            raise ValueError(f"groups has {known.levels} levels; the model was fitted with {expected}")
        problem = self._problem(x_ND, y_N)
        log_NAB = self._by_node(problem.log_joint(self._params))
        log_G, _, _ = integrate(log_NAB, known, self._grid)
        return log_G

    def predict(self, X: Any, groups: Any = None) -> Array:
        """Mean of y (N,): over the posterior of the effects of groups seen in `fit`, else over their prior.

        An error before `fit`.
        """
        check_is_fitted(self)
        x_ND = check_array(X, dtype=np.float64)
        mean_NAB = self._means(x_ND)
        outer_A, inner_B = np.exp(self._grid.log_outer_A), np.exp(self._grid.log_inner_B)
        if groups is None:
            prior_AB = outer_A[:, None] * inner_B
            return np.einsum("nab,ab->n", mean_NAB, prior_AB)
        labels = np.asarray(groups).reshape(len(x_ND), -1)
        nodes = []
        for names in labels.tolist():
            own_A = self._outer.get(names[0], outer_A)
            own_AB = self._inner.get(tuple(names), inner_B[None])
            nodes.append(own_A[:, None] * own_AB)
        return np.einsum("nab,nab->n", mean_NAB, np.stack(nodes))

    def _means(self, x_ND: Array) -> Array:
        """Mean of y for rows at every pair of nodes (N, A, B)."""
        nothing_N = np.zeros(len(x_ND))
        problem = self._problem(x_ND, nothing_N)
        log_gates_RK = problem.gates.log_joint(problem.gate_NP, self._params)
        means_RK1 = problem.experts.mean(problem.expert_NP, self._params)
        weight_RK = np.exp(log_gates_RK)
        mean_R = (weight_RK * means_RK1[..., 0]).sum(1)
        A, B = self._grid.size
        return mean_R.reshape(-1, A, B)

    def score(self, X: Any, y: Any, groups: Any = None) -> float:
        """R^2 of `predict`."""
        y_N = np.asarray(y, dtype=np.float64)
        rest_N = y_N - self.predict(X, groups)
        about_mean_N = y_N - y_N.mean()
        unexplained = (rest_N**2).sum()
        total = (about_mean_N**2).sum()
        return float(1 - unexplained / total)


def _grouped(groups: Any, rows: int) -> Groups:
    labels = np.asarray(groups)
    if len(labels) != rows:
        raise ValueError(f"groups has {len(labels)} entries for {rows} rows; give one a row")
    return Groups.of(labels)


def _first_nodes(y_N: Array, groups: Groups, grid: Grid) -> Array:
    """Node probabilities (N, A, B) to begin with, from standardised means of the groups."""
    outer_N = groups.outer_N
    mean_G = _means_of(y_N, outer_N)
    outer_nodes_A = grid.effects_ABL[:, 0, 0]
    outer_GA = _near_nodes(mean_G, outer_nodes_A, grid.log_outer_A)
    outer_NA1 = outer_GA[outer_N][:, :, None]
    if groups.levels == 1:
        return outer_NA1
    within_N = y_N - mean_G[outer_N]
    mean_H = _means_of(within_N, groups.inner_N)
    inner_nodes_B = grid.effects_ABL[0, :, 1]
    inner_HB = _near_nodes(mean_H, inner_nodes_B, grid.log_inner_B)
    inner_NB = inner_HB[groups.inner_N]
    return outer_NA1 * inner_NB[:, None, :]


def _means_of(value_N: Array, index_N: Array) -> Array:
    """Mean of every group."""
    count = np.bincount(index_N)
    total = np.bincount(index_N, value_N)
    return total / np.maximum(count, 1)


def _near_nodes(mean: Array, nodes: Array, log_weights: Array) -> Array:
    """Probabilities of nodes for every group, high near its standardised mean."""
    spread = mean.std() or 1.0
    score = (mean - mean.mean()) / spread
    gap = nodes - score[:, None]
    pull = 2.0 * gap**2
    return softmax(log_weights - pull, axis=1)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twelve groups of eight rows with an intercept of their own."""
    groups_N = torch.arange(12).repeat_interleave(8)
    x_ND = torch.randn(96, 1, generator=generator, dtype=torch.float64)
    effect_G = torch.randn(12, generator=generator, dtype=torch.float64)
    noise_N = torch.randn(96, generator=generator, dtype=torch.float64)
    bent_N = x_ND[:, 0].abs()
    y_N = bent_N + effect_G[groups_N] + 0.1 * noise_N
    estimator = MixedMixtureOfExperts(random_state=0, n_nodes=5)
    return {
        "estimator": estimator,
        "X": x_ND.numpy(),
        "y": y_N.numpy(),
        "groups": groups_N.numpy(),
    }
