"""Distributed mixture of experts: fit shards apart, then reduce all their experts to K by optimal transport.

**Equation:** M shards give M mixtures of K experts; pooled with weights pi'_l(x) = (N_m / N) pi_l^(m)(x) they are one
of L = M K. The reduced mixture minimises T = E_x sum_l pi'_l(x) min_k KL(N(b_l . x, s_l^2) | N(b_k . x, s_k^2)). MM:
move every local expert, at each of S supporting rows, to its nearest target (plan P_slk = pi'_l(x_s) at that k); then
b_k = least squares of the means b_l . x_s with weights P, and s_k^2 = mean under P of s_l^2 + ((b_l - b_k) . x_s)^2. At
the end the gates are the multinomial regression of a_sk = sum_l P_slk on x_s.

**Shapes:** X (N, D), y (N,); as the softmax-gated mixture of linear experts; `local_` (M fitted estimators),
`transport_` (T at every MM step, in nats), `local_s_` (seconds of every shard), `reduction_s_`.

**Reference:** Chamroukhi and Pham (2023), Distributed Learning of Mixtures of Experts, arXiv:2312.09877, and the
authors' code.

**Differs:** gates are regressed on the plan alone; the authors' code mixes in the targets of the supporting rows.
Supporting rows are drawn from all rows. Shards run one after another; each needs nothing of the others.

**Fails when:** a shard's own fit is a poor local optimum (its experts pollute the pool; raise `n_init`), or experts are
so close that shards disagree about which is which.

**Cost:** O(N K D^2) a local EM step, split over shards; O(S L K + S K D^2) an MM step.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state

from mixwell.core.method import method
from mixwell.density._ascent import Run, ascend, highest
from mixwell.density._gaussian import Array, divergence
from mixwell.density.regression._fits import least_squares, softmax_fit
from mixwell.density.regression._parts import (
    GatedRegressor,
    GaussianExperts,
    Params,
    SoftmaxGates,
    check_at_least_one,
    check_common,
    with_intercept,
)
from mixwell.density.regression.polynomial import PolynomialExperts


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the distributed mixture of experts; `ValueError` for one out of range."""

    n_experts: int = 2  # K
    n_shards: int = 4  # M
    support: int = 500  # S: rows at which mixtures are compared, at most all
    reduce_init: int = 5  # starts of the reduction; the one with the least transport is kept
    reduce_iter: int = 100  # MM steps at most
    ridge: float = 1e-3  # penalty on squared gate slopes, in nats
    reg_covar: float = 1e-6  # smallest variance of an expert, as a share of y's variance
    tol: float = 1e-6  # stop a local fit when a step gains less, in nats a row; the reduction likewise
    max_iter: int = 300  # of a local fit
    n_init: int = 1  # starts of a local fit
    init: str = "kmeans"  # of a local fit: "kmeans" or "random"
    random_state: Any = None  # of shards, supporting rows and starts

    def __post_init__(self) -> None:
        check_common(self)
        check_at_least_one(self, "n_shards", "support", "reduce_init", "reduce_iter")


class Experts(NamedTuple):
    """Linear coefficients and variances of normal experts."""

    coef_KP: Array
    variance_K: Array


def divergences(mean_SL: Array, variance_L: Array, mean_SK: Array, variance_K: Array) -> Array:
    """KL divergence of every local normal from every target, at every row (S, L, K), in nats."""
    here, there = mean_SL[:, :, None], mean_SK[:, None, :]
    gap_SLK = here - there
    variance_L1 = variance_L[:, None]
    square_SLK = (variance_L1 + gap_SLK**2) / variance_K
    ratio_LK = variance_K / variance_L1
    return divergence(square_SLK, np.log(ratio_LK))


def transport(weight_SL: Array, cost_SLK: Array) -> tuple[Array, float]:
    """The cheapest plan (S, L, K) that moves all weight of the local experts, and its mean cost a row."""
    nearest_SL = cost_SLK.argmin(2)
    targets_K = np.arange(cost_SLK.shape[2])
    chosen_SLK = nearest_SL[:, :, None] == targets_K
    plan_SLK = weight_SL[:, :, None] * chosen_SLK
    paid_SLK = plan_SLK * cost_SLK
    total = float(paid_SLK.sum())
    return plan_SLK, total / len(weight_SL)


def barycentres(x_SP: Array, plan_SLK: Array, coef_LP: Array, variance_L: Array, old: tuple[Array, Array]) -> Experts:
    """Targets (K, P) and variances (K,) that minimise the cost of a plan; one that receives nothing stays."""
    mean_SL = x_SP @ coef_LP.T
    old_coef_KP, old_variance_K = old
    coef_KP = old_coef_KP.copy()
    variance_K = old_variance_K.copy()
    least = 1e-12 * plan_SLK.sum()
    for k in range(len(coef_KP)):
        plan_SL = plan_SLK[:, :, k]
        mass_S = plan_SL.sum(1)
        mass = mass_S.sum()
        if mass <= least:
            continue
        moment_S = (plan_SL * mean_SL).sum(1)
        target_S = moment_S / np.maximum(mass_S, 1e-300)
        found_P1 = least_squares(x_SP, target_S[:, None], mass_S)
        coef_KP[k] = found_P1[:, 0]
        fitted_S = x_SP @ coef_KP[k]
        gap_SL = mean_SL - fitted_S[:, None]
        square_SL = variance_L + gap_SL**2
        variance_K[k] = (plan_SL * square_SL).sum() / mass
    return Experts(coef_KP, variance_K)


@dataclass(frozen=True)
class Reduction:
    """What is reduced: local experts with their weights (S, L) at the supporting rows (S, P)."""

    x_SP: Array
    weight_SL: Array
    local: Experts

    def plan(self, targets: Experts) -> tuple[Array, float]:
        """The cheapest plan (S, L, K) onto some targets, and its mean cost a row."""
        local = self.local
        mean_SL = self.x_SP @ local.coef_KP.T
        mean_SK = self.x_SP @ targets.coef_KP.T
        cost_SLK = divergences(mean_SL, local.variance_K, mean_SK, targets.variance_K)
        return transport(self.weight_SL, cost_SLK)

    def step(self, targets: Experts) -> tuple[Experts, float]:
        """One step of MM: new targets, and minus the cost of the old ones."""
        plan_SLK, cost = self.plan(targets)
        new = barycentres(self.x_SP, plan_SLK, *self.local, targets)
        return new, -cost

    def run(self, start: Experts, tol: float, max_iter: int) -> Run[Experts]:
        """MM from a start; the bounds are minus the cost at every step."""
        return ascend(self.step, start, tol=tol, max_iter=max_iter)


@method(
    title="Distributed mixture of experts",
    paper="Distributed Learning of Mixtures of Experts",
    year=2023,
    tags={"estimator", "em", "responsibilities", "sklearn"},
)
class DistributedMixtureOfExperts(GatedRegressor, config=Config):
    """Softmax-gated linear experts from fits of shards; see the module's card and `Config`."""

    def fit(self, X: Any, y: Any) -> DistributedMixtureOfExperts:
        """Fit to X (N, D) and y (N,).

        Raises a `ValueError` where options or data are none that can be fitted, or there are too few rows for the
        shards.
        """
        config = self._config()
        x_ND, y_NQ = self._read(X, y, multi_output=False)
        N = len(x_ND)
        if config.n_shards * config.n_experts > N:
            raise ValueError(f"n_samples={N} is too few for {config.n_shards} shards of {config.n_experts} "
                             "experts; lower n_shards")
        z_ND = self._standardise(x_ND)
        rng = check_random_state(config.random_state)
        shards = np.array_split(rng.permutation(N), config.n_shards)
        self.local_: list[Any] = []
        self.local_s_: list[float] = []
        for shard in shards:
            began = perf_counter()
            local = self._local(z_ND[shard], y_NQ[shard, 0], config, rng)
            self.local_.append(local)
            self.local_s_.append(perf_counter() - began)
        shares_M = np.array([len(shard) for shard in shards]) / N
        chosen = rng.choice(N, min(config.support, N), replace=False)
        began = perf_counter()
        self._gates = SoftmaxGates(config.ridge)
        variance = float(y_NQ.var())
        self._experts = GaussianExperts(config.reg_covar * max(variance, 1e-300))
        run = self._pool(with_intercept(z_ND[chosen]), shares_M, config, rng)
        self._publish(run)
        self.reduction_s_ = perf_counter() - began
        return self

    def _local(self, z_ND: Array, y_N: Array, config: Config, rng: np.random.RandomState) -> Any:
        """The fit of one shard."""
        names = ("n_experts", "ridge", "reg_covar", "tol", "max_iter", "n_init", "init")
        options = {name: getattr(config, name) for name in names}
        model = PolynomialExperts(**options, degree=1, random_state=rng.randint(2**31))
        return model.fit(z_ND, y_N)

    def _pool(self, x_SP: Array, shares_M: Array, config: Config, rng: np.random.RandomState) -> Run[Params]:
        """One mixture for those of all shards."""
        reduction = self._pooled(x_SP, shares_M)
        runs = []
        for _ in range(config.reduce_init):
            begin = _grouped(reduction.local, config.n_experts, rng)
            run = reduction.run(begin, config.tol, config.reduce_iter)
            runs.append(run)
        best = highest(runs)
        self.transport_ = [-bound for bound in best.bounds]
        coef_KP, variance_K = best.state
        plan_SLK, _ = reduction.plan(best.state)
        gate_KP = softmax_fit(x_SP, plan_SLK.sum(1), np.zeros_like(coef_KP), config.ridge, steps=50)
        params = {"gate_coef": gate_KP, "coef": coef_KP[:, :, None], "covariances": variance_K[:, None, None]}
        return Run(params, best.bounds, best.converged)

    def _pooled(self, x_SP: Array, shares_M: Array) -> Reduction:
        """All shards' experts side by side."""
        coef, variances, weights = [], [], []
        for local, share in zip(self.local_, shares_M):
            coef_KP = recentred(local.coef_[:, :, 0], local)
            gate_KP = recentred(local.gate_coef_, local)
            logits_SK = x_SP @ gate_KP.T
            gates_SK = softmax(logits_SK, axis=1)
            coef.append(coef_KP)
            variances.append(local.covariances_[:, 0, 0])
            weights.append(share * gates_SK)
        experts = Experts(np.concatenate(coef), np.concatenate(variances))
        weight_SL = np.concatenate(weights, axis=1)
        return Reduction(x_SP, weight_SL, experts)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = False
        return tags


def _grouped(local: Experts, K: int, rng: np.random.RandomState) -> Experts:
    """Targets to begin with: means of groups of local experts."""
    kmeans = KMeans(K, n_init=1, random_state=rng)
    labels = kmeans.fit(local.coef_KP).labels_
    coef, variances = [], []
    for k in range(K):
        group = np.flatnonzero(labels == k)
        if not len(group):  # rows that repeat: fewer clusters than asked for
            group = np.array([0])
        coef_MP = local.coef_KP[group]
        variance_M = local.variance_K[group]
        coef.append(coef_MP.mean(0))
        variances.append(variance_M.mean())
    return Experts(np.stack(coef), np.array(variances))


def recentred(coef_KP: Array, local: Any) -> Array:
    """A local fit's linear coefficients in the units that the shards share."""
    slope_KD = coef_KP[:, 1:] / local.scale_
    intercept_K = coef_KP[:, 0] - slope_KD @ local.shift_
    return np.column_stack([intercept_K, slope_KD])


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two lines that meet at zero, in two shards."""
    uniform_ND = torch.rand(160, 1, generator=generator, dtype=torch.float64)
    normal_N = torch.randn(160, generator=generator, dtype=torch.float64)
    x_ND = uniform_ND * 2 - 1
    clean_N = x_ND[:, 0].abs()
    y_N = clean_N + 0.05 * normal_N
    estimator = DistributedMixtureOfExperts(n_shards=2, random_state=0)
    return {
        "estimator": estimator,
        "X": x_ND.numpy(),
        "y": y_N.numpy(),
    }
