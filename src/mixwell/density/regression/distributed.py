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
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state

from mixwell.core.method import method
from mixwell.density._ascent import Run
from mixwell.density._gaussian import Array, divergence
from mixwell.density.regression._fits import least_squares, softmax_fit
from mixwell.density.regression._parts import (
    GatedRegressor,
    GaussianExperts,
    Params,
    SoftmaxGates,
    check_common,
    with_intercept,
)
from mixwell.density.regression.polynomial import PolynomialExperts


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the distributed mixture of experts."""

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
        for name in ("n_shards", "support", "reduce_init", "reduce_iter"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")


def divergences(mean_SL: Array, variance_L: Array, mean_SK: Array, variance_K: Array) -> Array:
    """KL divergence of every local normal from every target, at every row (S, L, K), in nats."""
    gap_SLK = (mean_SL[:, :, None] - mean_SK[:, None, :]) ** 2
    square_SLK = (variance_L[:, None] + gap_SLK) / variance_K
    return divergence(square_SLK, np.log(variance_K / variance_L[:, None]))


def transport(weight_SL: Array, cost_SLK: Array) -> tuple[Array, float]:
    """The cheapest plan (S, L, K) that moves all weight of the local experts, and its mean cost a row."""
    nearest_SL = cost_SLK.argmin(2)
    plan_SLK = weight_SL[:, :, None] * (nearest_SL[:, :, None] == np.arange(cost_SLK.shape[2]))
    return plan_SLK, float((plan_SLK * cost_SLK).sum()) / len(weight_SL)


def barycentres(x_SP: Array, plan_SLK: Array, coef_LP: Array, variance_L: Array, old: tuple[Array, Array],
                ) -> tuple[Array, Array]:
    """Targets (K, P) and variances (K,) that minimise the cost of a plan; one that receives nothing stays."""
    mean_SL, (coef_KP, variance_K) = x_SP @ coef_LP.T, (old[0].copy(), old[1].copy())
    for k in range(len(coef_KP)):
        plan_SL = plan_SLK[:, :, k]
        mass_S = plan_SL.sum(1)
        if mass_S.sum() <= 1e-12 * plan_SLK.sum():
            continue
        target_S = (plan_SL * mean_SL).sum(1) / np.maximum(mass_S, 1e-300)
        coef_KP[k] = least_squares(x_SP, target_S[:, None], mass_S)[:, 0]
        gap_SL = mean_SL - (x_SP @ coef_KP[k])[:, None]
        variance_K[k] = (plan_SL * (variance_L + gap_SL**2)).sum() / mass_S.sum()
    return coef_KP, variance_K


def reduce(x_SP: Array, weight_SL: Array, coef_LP: Array, variance_L: Array, start: tuple[Array, Array], tol: float,
           max_iter: int) -> tuple[Array, Array, Array, list[float]]:
    """MM from `start` (coefficients (K, P), variances (K,)): targets, variances, shares (S, K), cost at every step."""
    targets, costs = start, []
    for _ in range(max_iter):
        cost_SLK = divergences(x_SP @ coef_LP.T, variance_L, x_SP @ targets[0].T, targets[1])
        plan_SLK, cost = transport(weight_SL, cost_SLK)
        costs.append(cost)
        if len(costs) > 1 and costs[-2] - cost < tol:
            break
        targets = barycentres(x_SP, plan_SLK, coef_LP, variance_L, targets)
    return *targets, plan_SLK.sum(1), costs


@method(
    title="Distributed mixture of experts",
    paper="Distributed Learning of Mixtures of Experts",
    year=2023,
    tags={"estimator", "em", "responsibilities", "sklearn"},
)
class DistributedMixtureOfExperts(GatedRegressor, config=Config):
    """Softmax-gated linear experts from fits of shards; see the module's card and `Config`."""

    def fit(self, X: Any, y: Any) -> DistributedMixtureOfExperts:
        """Fit to X (N, D) and y (N,)."""
        config = self._config()
        x_ND, y_NQ = self._read(X, y, multi_output=False)
        if len(x_ND) < config.n_shards * config.n_experts:
            raise ValueError(f"n_samples={len(x_ND)} is too few for {config.n_shards} shards of {config.n_experts} "
                             "experts; lower n_shards")
        self._standardise(x_ND)
        z_ND, rng = (x_ND - self.shift_) / self.scale_, check_random_state(config.random_state)
        shards = np.array_split(rng.permutation(len(z_ND)), config.n_shards)
        self.local_: list[Any] = []
        self.local_s_: list[float] = []
        for shard in shards:
            began = perf_counter()
            self.local_.append(self._local(z_ND[shard], y_NQ[shard, 0], config, rng))
            self.local_s_.append(perf_counter() - began)
        shares_M = np.array([len(s) for s in shards]) / len(z_ND)
        support = z_ND[rng.choice(len(z_ND), min(config.support, len(z_ND)), replace=False)]
        began = perf_counter()
        self._gates = SoftmaxGates(config.ridge)
        self._experts = GaussianExperts(config.reg_covar * max(float(y_NQ.var()), 1e-300))
        self._publish(self._pool(with_intercept(support), shares_M, config, rng))
        self.reduction_s_ = perf_counter() - began
        return self

    def _local(self, z_ND: Array, y_N: Array, config: Config, rng: np.random.RandomState) -> Any:
        names = ("n_experts", "ridge", "reg_covar", "tol", "max_iter", "n_init", "init")
        options = {name: getattr(config, name) for name in names}
        return PolynomialExperts(**options, degree=1, random_state=rng.randint(2**31)).fit(z_ND, y_N)

    def _pool(self, x_SP: Array, shares_M: Array, config: Config, rng: np.random.RandomState) -> Run[Params]:
        coef_LP = np.concatenate([recentred(m.coef_[:, :, 0], m) for m in self.local_])
        variance_L = np.concatenate([m.covariances_[:, 0, 0] for m in self.local_])
        weight_SL = np.concatenate([share * softmax(x_SP @ recentred(m.gate_coef_, m).T, axis=1)
                                    for share, m in zip(shares_M, self.local_)], axis=1)
        K, tries = config.n_experts, []
        for _ in range(config.reduce_init):
            labels = KMeans(K, n_init=1, random_state=rng).fit(coef_LP).labels_
            groups = [np.flatnonzero(labels == k) for k in range(K)]
            groups = [g if len(g) else np.array([0]) for g in groups]
            begin = (np.stack([coef_LP[g].mean(0) for g in groups]), np.array([variance_L[g].mean() for g in groups]))
            tries.append(reduce(x_SP, weight_SL, coef_LP, variance_L, begin, config.tol, config.reduce_iter))
        coef_KP, variance_K, share_SK, self.transport_ = min(tries, key=lambda found: found[3][-1])
        gate_KP = softmax_fit(x_SP, share_SK, np.zeros_like(coef_KP), config.ridge, steps=50)
        params = {"gate_coef": gate_KP, "coef": coef_KP[:, :, None], "covariances": variance_K[:, None, None]}
        return Run(params, [-c for c in self.transport_], len(self.transport_) < config.reduce_iter)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = False
        return tags


def recentred(coef_KP: Array, local: Any) -> Array:
    """A local fit's linear coefficients in the units that the shards share."""
    slope_KD = coef_KP[:, 1:] / local.scale_
    return np.column_stack([coef_KP[:, 0] - slope_KD @ local.shift_, slope_KD])


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two lines that meet at zero, in two shards."""
    x_ND = torch.rand(160, 1, generator=generator, dtype=torch.float64) * 2 - 1
    noise_N = 0.05 * torch.randn(160, generator=generator, dtype=torch.float64)
    return {"estimator": DistributedMixtureOfExperts(n_shards=2, random_state=0), "X": x_ND.numpy(),
            "y": (x_ND[:, 0].abs() + noise_N).numpy()}
