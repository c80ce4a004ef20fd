"""Private Gaussian mixture: estimates from disjoint blocks that agree, released under (epsilon, delta)-privacy.

**Equation:** A non-private estimator runs on each of t blocks. d^2(F, F') = min over permutations of sum_k
K^2 |w_k - w'_k|^2 + |mu_k - mu'_k|^2 (the larger of Sigma_k^-1's and Sigma'_k^-1's norm) + |log(Sigma_k^-1
Sigma'_k)|^2 / 2. q_i is the share of candidates within r of candidate i, Q the mean of q. With (eps_1, delta_1) and A =
2 / (t eps_1) log(1 + (e^eps_1 - 1) / (2 delta_1)): nothing is released unless Q + Z >= 0.8 + A, Z truncated Laplace on
[-A, A] of scale 2 / (t eps_1). Else, from the first candidate with q_i > 0.6, in random order of the components:
w + eta g / K (cut at 0, rescaled), mu + eta Sigma^(1/2) g, Sigma^(1/2) (I + eta G / sqrt 2) (I + eta G / sqrt 2)^T
Sigma^(1/2)^T, entries of g and G standard normal, Sigma^(1/2) the Cholesky factor (any root has the same law).

Why it is private (N, D and options public, rows finite, neighbours differ in one of N rows): it sits in one block,
which moves Q by at most 2 / t, so Q + Z is (eps_1, delta_1)-private. A release needs Q >= 0.8, so a q above 0.6. Where
neighbours can both release, t >= 5 leaves an unchanged block near both choices, so these differ by at most gamma = 2 r
e^(r / sqrt 2), for d is a metric but for the norm's change from one Sigma to the next. Let u be the logs of the square
roots of the eigenvalues of Sigma_k^-1 Sigma'_k; sum u^2 <= gamma^2 / 2. Up to a rotation that drops out of the product,
the releases are independent normals whose standard deviations differ by e^u, D + 1 for each u, and whose means differ
by gamma / eta in all. With s = 1 - a (1 - e^(-sqrt(2) gamma)) > 0 their Renyi divergence of order a is at most a
gamma^2 / (2 eta^2 s) + (D + 1) (-sqrt(2) a gamma - log s) / (2 (a - 1)). eta is the least that makes this (eps_2,
delta_2)-private by eps = divergence + log((a - 1) / a) - log(a delta) / (a - 1). Test and release compose to (eps_1 +
eps_2, delta_1 + delta_2); where only one neighbour can release, the test alone keeps them within (eps_1, delta_1).

**Shapes:** X (N, D); T blocks (t), K components; `weights_` (K,), `means_` (K, D), `covariances_` (K, D, D).

**Reference:** Arbas, Ashtiani, Liaw (2023), Polynomial Time and Private Learning of Unbounded Gaussian Mixture Models,
ICML, arXiv:2303.04288; Geng, Ding, Guo, Kumar (2020) for the truncated Laplace noise; Canonne, Kamath, Steinke (2020),
arXiv:2004.00010, for the conversion.

**Differs:** written from memory of the paper. Its semimetric takes the largest part over components, with the spectral
norm of Sigma^-1/2 Sigma' Sigma^-1/2 - I; the sum of squares here needs less noise. Its constants are asymptotic; those
above are derived anew. It proves (2 eps, 4 e^eps delta); the split here adds up to epsilon and delta exactly.

**Fails when:** there are few rows: spread must stay near eps_2 / log(1 / delta_2), which for two components in the
plane takes millions of rows at epsilon 8 (`MixwellError`). Weights are unequal or components overlap (blocks then
differ by more than the default radius; nothing is released). Released covariances are too wide by 1 + D `noise_`^2 / 2
on average. The guarantee is that of real numbers and says nothing of floating-point noise, of the time taken, or of
errors from `estimator` that are not ValueError, ArithmeticError or RuntimeError. A `random_state` that others know,
options chosen by looking at X, and an `estimator` that keeps state between fits undo it.

**Cost:** T fits of N / T rows; O(T^2 K^2 D^3) for the agreement.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import chi2
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.density._covariances import as_full
from mixwell.density._gaussian import Array, symmetric
from mixwell.density._options import Configured
from mixwell.density.mixtures.gaussian import GaussianMixture
from mixwell.density.robust._privacy import (
    ROOT2,
    Budget,
    largest_radius,
    noise_scale,
    reach,
    spread,
    truncated_laplace,
)
from mixwell.density.values.gaussian_mixture import GaussianMixtureDensity

POPULOUS = 0.6  # a candidate that more than this share is near may be released
SLACK = 1.25  # of the default radius, for unequal weights and some overlap
LARGEST = 1e70  # of a parameter, so that no distance overflows


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the private mixture. All of them are public: choose them without looking at the rows.

    `ValueError` for a value out of range.
    """

    estimator: Any = None  # fits a block and has weights_, means_, covariances_; None: density.mixtures.gaussian
    n_components: int = 2  # K, of every block
    epsilon: float = 1.0  # of the whole fit; math.inf: no noise
    delta: float = 1e-6  # of the whole fit; below 1 / N
    test_share: float = 0.5  # part of epsilon and delta that the test spends, the rest goes to the release
    agreement: float = 0.8  # least Q that may be released, above 0.6 and below 1; less needs fewer blocks
    n_blocks: int | None = None  # t, at least 5; None: the least with A <= (1 - agreement) / 2
    radius: float | None = None  # r; None: 1.25 times what blocks of equal, separate components differ by at most
    raise_on_failure: bool = False  # an error instead of `released_` False where blocks disagree
    random_state: Any = None

    def __post_init__(self) -> None:
        shares = 0 < self.delta < 1 and 0 < self.test_share < 1
        if self.n_components < 1 or not self.epsilon > 0 or not shares:
            raise ValueError(f"n_components is {self.n_components}, epsilon {self.epsilon}, delta {self.delta}, "
                             f"test_share {self.test_share}; expected at least 1, above 0, and two inside (0, 1)")
        if not POPULOUS < self.agreement < 1:
            raise ValueError(f"agreement is {self.agreement}; expected above {POPULOUS} and below 1")
        if self.n_blocks is not None and self.n_blocks < 5:
            raise ValueError(f"n_blocks is {self.n_blocks}; expected at least 5, or None")
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"radius is {self.radius}; expected above 0, or None")
        own = getattr(self.estimator, "n_components", self.n_components)
        if own != self.n_components:
            raise ValueError(f"n_components is {self.n_components}, the estimator's {own}; expected the same")


class Parameters(NamedTuple):
    """One mixture, or several along a leading axis."""

    weights: Array  # (K,)
    means: Array  # (K, D)
    covariances: Array  # (K, D, D)
    whiten: Array  # (K, D, D): inverse Cholesky factors of the covariances


def parameters(weights: Any, means: Any, covariances: Any) -> Parameters:
    """Checked float64 parameters of one mixture; `ValueError` where they are not those of a normal mixture."""
    w_K = np.asarray(weights, dtype=np.float64)
    m_KD = np.asarray(means, dtype=np.float64)
    c_KDD = np.asarray(covariances, dtype=np.float64)
    one_weight_each = w_K.shape == m_KD.shape[:1]
    if not one_weight_each or c_KDD.shape != (*m_KD.shape, m_KD.shape[-1]):
        raise ValueError(f"got weights {w_K.shape}, means {m_KD.shape}, covariances {c_KDD.shape}; expected (K,), "
                         "(K, D), (K, D, D)")
    root_KDD = np.linalg.cholesky(c_KDD)
    made = Parameters(w_K, m_KD, c_KDD, np.linalg.inv(root_KDD))
    bounded = all((np.abs(v) <= LARGEST).all() for v in made)
    if not bounded or (w_K < 0).any():
        raise ValueError(f"expected weights of at least 0, and every parameter finite and at most {LARGEST}")
    return made


def squared_length(whiten_KDD: Array, gap_KD: Array) -> Array:
    """Squared lengths (...) of gaps (..., D) in the standard deviations behind `whiten`."""
    white_KD1 = whiten_KDD @ gap_KD[..., None]
    return (white_KD1**2).sum((-1, -2))


def component_costs(one: Parameters, many: Parameters, limit: float = math.inf) -> Array:
    """d^2 between components (T, K, K) of one mixture and T others; what is above `limit` need not be complete."""
    gap_TKKD = one.means[:, None] - many.means[:, None]
    near_TKK = squared_length(one.whiten[:, None], gap_TKKD)
    far_TKK = squared_length(many.whiten[:, None], gap_TKKD)
    weight_gap_TKK = one.weights[:, None] - many.weights[:, None]
    weight_cost_TKK = (len(one.weights) * weight_gap_TKK) ** 2
    cost_TKK = weight_cost_TKK + np.maximum(near_TKK, far_TKK)
    t, k, j = np.nonzero(cost_TKK <= limit)  # eigenvalues cost most: only where they can still count
    whiten_NDD = one.whiten[k]
    ratio_NDD = whiten_NDD @ many.covariances[t, j] @ np.swapaxes(whiten_NDD, -1, -2)
    tiny = np.finfo(float).tiny
    spectrum_ND = np.maximum(np.linalg.eigvalsh(ratio_NDD), tiny)
    log_ND = np.log(spectrum_ND)
    cost_TKK[t, k, j] += 0.5 * (log_ND**2).sum(-1)
    return cost_TKK


def matched(cost_TKK: Array) -> Array:
    """Least sum (T,) of costs over one-to-one matchings: the nearest of each where that is one, else an assignment."""
    K = cost_TKK.shape[-1]
    total_T = cost_TKK.min(-1).sum(-1)
    nearest_TK = cost_TKK.argmin(-1)
    sorted_TK = np.sort(nearest_TK, axis=-1)
    clashing_T = (sorted_TK != np.arange(K)).any(-1)
    for t in np.flatnonzero(clashing_T):
        cost_KK = cost_TKK[t]
        pairs = linear_sum_assignment(cost_KK)
        total_T[t] = cost_KK[pairs].sum()
    return total_T


def semimetric(one: Parameters, other: Parameters) -> float:
    """d between two mixtures of as many components: up to their order, and the same for affine images of both."""
    many = Parameters(*(value[None] for value in other))
    costs_1KK = component_costs(one, many)
    (square,) = matched(costs_1KK)
    return math.sqrt(square)


def neighbours(candidates: Sequence[Parameters | None], radius: float) -> Array:
    """Which candidates (T, T) are within `radius`; None, a failed block, is near itself alone."""
    close_TT = np.eye(len(candidates), dtype=bool)
    fitted = [c for c in candidates if c is not None]
    index = np.flatnonzero([c is not None for c in candidates])
    stacked = [np.stack(values) for values in zip(*fitted)]
    for i, one in enumerate(fitted[:-1]):
        later = Parameters(*(values[i + 1:] for values in stacked))
        cost_TKK = component_costs(one, later, radius**2)
        close_T = matched(cost_TKK) <= radius**2
        close_TT[index[i], index[i + 1:]] = close_T
    return close_TT | close_TT.T


def default_radius(n_components: int, dim: int, blocks_per_row: float) -> float:
    """The radius that blocks of equal, separate components rarely exceed."""
    free = n_components * (1 + dim * (dim + 3) // 2) - 1
    quantile = chi2.ppf(0.99, free)
    return SLACK * math.sqrt(2 * n_components * quantile * blocks_per_row)


def mask(one: Parameters, noise: float, rng: np.random.RandomState) -> tuple[Array, Array, Array]:
    """Weights (K,), means (K, D), covariances (K, D, D) with noise of the components' own shape, in random order."""
    K, D = one.means.shape
    weights_K = one.weights + noise / K * rng.standard_normal(K)
    weights_K = np.maximum(weights_K, 0.0)
    root_KDD = np.linalg.cholesky(one.covariances)
    shift_KD1 = root_KDD @ rng.standard_normal((K, D, 1))
    means_KD = one.means + noise * shift_KD1[..., 0]
    stretch_KDD = np.eye(D) + noise / ROOT2 * rng.standard_normal((K, D, D))
    factor_KDD = root_KDD @ stretch_KDD
    covariances_KDD = symmetric(factor_KDD @ np.swapaxes(factor_KDD, -1, -2))
    total = weights_K.sum()
    if total > 0:
        weights_K = weights_K / total
    else:
        weights_K = np.full(K, 1 / K)
    order = rng.permutation(K)
    return weights_K[order], means_KD[order], covariances_KDD[order]


def _too_wide(config: Config, radius: float, release: Budget, N: int, D: int) -> str:
    largest = largest_radius(D, *release)
    if config.radius:
        way = "pass a smaller one, if blocks agree so well, or raise epsilon"
    else:
        rows = N * (radius / largest) ** 2
        way = f"that takes {rows:.2g} rows; or raise epsilon, or lower agreement"
    return (f"radius is {radius:.3g}; no noise hides that for epsilon {config.epsilon}, delta {config.delta}; "
            f"expected below {largest:.3g}: {way}.")


@method(
    title="Private Gaussian mixture",
    paper="Polynomial Time and Private Learning of Unbounded Gaussian Mixture Models",
    year=2023,
    tags={"estimator", "sklearn"},
)
class PrivateGaussianMixture(Configured, config=Config):
    """Gaussian mixture under (epsilon, delta)-differential privacy, with no bound on its parameters; see `Config`.

    Fitted: `released_`, and where that is True `weights_`, `means_`, `covariances_`; `privacy_`, what of epsilon and
    delta the test and the release spend; `n_blocks_`, `radius_`, `noise_` (eta); `agreement_` (Q with noise) and
    `needed_`. All of it may be published together.
    """

    def fit(self, X: Any, y: Any = None) -> PrivateGaussianMixture:
        """Fit rows X (N, D), and release a mixture if the blocks agree on one; y is ignored.

        `MixwellError` where the rows are too few for the blocks, no noise hides the radius, or, with
        `raise_on_failure`, the blocks disagree; `ValueError` for options or rows out of range.
        """
        config = self._config()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        self._plan(config, *X.shape)
        rng = check_random_state(config.random_state)
        candidates = self._candidates(X, rng)
        share_T = neighbours(candidates, self.radius_).mean(1)
        noise = truncated_laplace(rng.uniform(), *self._test)
        self.agreement_ = float(share_T.mean()) + noise
        self.released_ = self.agreement_ >= self.needed_
        for name in ("weights_", "means_", "covariances_"):  # an earlier fit's, which this one need not release
            self.__dict__.pop(name, None)
        if self.released_:
            first = int(np.argmax(share_T > POPULOUS))
            chosen = candidates[first]
            assert chosen is not None, "a failed block is near itself alone"
            self.weights_, self.means_, self.covariances_ = mask(chosen, self.noise_, rng)
        elif config.raise_on_failure:
            raise MixwellError(f"nothing is released: the blocks agree by {self.agreement_:.3f}, expected at least "
                               f"{self.needed_:.3f}. Try a larger radius, fewer components or an estimator with more "
                               "starts; each further fit spends epsilon and delta again.")
        return self

    def as_density(self) -> GaussianMixtureDensity:
        """The released mixture as a value that can be sampled, conditioned and compared; an error where none is."""
        if not getattr(self, "released_", False):
            raise MixwellError("there is no released mixture; expected a fit whose released_ is True")
        weights = torch.as_tensor(self.weights_)
        means = torch.as_tensor(self.means_)
        covariances = torch.as_tensor(self.covariances_)
        return GaussianMixtureDensity(weights, means, covariances)

    def _plan(self, config: Config, N: int, D: int) -> None:
        """Everything that is settled before the rows are looked at."""
        test = Budget(config.epsilon, config.delta).times(config.test_share)
        release = Budget(config.epsilon, config.delta).times(1 - config.test_share)
        blocks, needed = self._test_size(config, test)
        fewest = blocks * max(2, config.n_components)
        if fewest > N:
            raise MixwellError(f"X has {N} rows; expected at least {fewest} for {blocks} blocks")
        radius = config.radius or default_radius(config.n_components, D, blocks / N)
        noise = noise_scale(spread(radius), D, *release)
        if math.isinf(noise):
            raise MixwellError(_too_wide(config, radius, release, N, D))
        self._test = (2 / blocks, *test)
        self.n_blocks_ = blocks
        self.needed_ = needed
        self.radius_ = radius
        self.noise_ = noise
        self.privacy_ = {
            "test": test._asdict(),
            "release": release._asdict(),
            "total": {"epsilon": config.epsilon, "delta": config.delta},
        }

    @staticmethod
    def _test_size(config: Config, test: Budget) -> tuple[int, float]:
        """Blocks, and the noisy agreement that they need for a release."""
        half_gap = 0.5 * (1 - config.agreement)
        fewest = math.ceil(reach(2.0, *test) / half_gap)
        blocks = config.n_blocks or max(5, fewest)
        needed = config.agreement + reach(2 / blocks, *test)
        if needed >= 1:
            raise MixwellError(f"n_blocks is {blocks}, too few to test an agreement of {config.agreement}; expected "
                               f"at least {fewest}")
        return blocks, needed

    def _candidates(self, X: Array, rng: np.random.RandomState) -> list[Parameters | None]:
        """One fit for each of the disjoint blocks of rows."""
        order = rng.permutation(len(X))
        blocks = np.array_split(order, self.n_blocks_)
        seeds = rng.randint(2**31 - 1, size=self.n_blocks_)
        return [self._candidate(X[rows], int(seed)) for rows, seed in zip(blocks, seeds)]

    def _candidate(self, x_ND: Array, seed: int) -> Parameters | None:
        """What the estimator finds in one block; None where it finds none, so that no error tells of the rows."""
        if self.estimator is None:
            model: Any = GaussianMixture(self.n_components, reg_covar="scale", tol=1e-6, max_iter=500)
        else:
            model = clone(self.estimator)
        names = [name for name in model.get_params() if name.rpartition("__")[2] == "random_state"]
        model.set_params(**dict.fromkeys(names, seed))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.fit(x_ND)
            found = _parameters_of(model)
        except (ValueError, ArithmeticError, RuntimeError):
            return None
        if found.means.shape != (self.n_components, x_ND.shape[1]):
            return None
        return found


def _parameters_of(model: Any) -> Parameters:
    kind = getattr(model, "covariance_type", "full")
    means_KD = torch.as_tensor(model.means_).double()
    own = torch.as_tensor(model.covariances_)
    own_1 = own.double()[None]
    full_1KDD = as_full(kind, own_1, means_KD[None])
    (covariances_KDD,) = full_1KDD
    return parameters(model.weights_, means_KD, covariances_KDD)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups on a line far from zero, and an estimator that needs no noise to agree."""
    centres_N1 = 1e6 + 20.0 * (torch.arange(480) % 2)[:, None]
    noise_N1 = torch.randn(480, 1, generator=generator, dtype=torch.float64)
    estimator = PrivateGaussianMixture(epsilon=math.inf, n_blocks=6, random_state=0)
    return {"estimator": estimator, "X": (centres_N1 + noise_N1).numpy()}
