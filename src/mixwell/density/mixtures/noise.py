"""Gaussian mixture with a noise component, or with the least likely rows trimmed: groups that outliers do not bend.

**Equation:** p(x) = w_0 / V + sum_k w_k N(x; mu_k, Sigma_k), V the volume that the data takes, so that a row far from
all groups is noise with probability w_0 / (V p(x)). EM: r_n0 = w_0 / (V p(x_n)), the other steps as ever. Trimming: of
the rows, the share `trim` with the lowest sum_k w_k N(x_n; mu_k, Sigma_k) leaves every M step (a step of
concentration); the sum of the log densities of those that stay never falls.

**Shapes:** X (N, D); `weights_` (K,), `noise_weight_`, together one; `volume_` V; `components_` the groups as a fitted
`GaussianMixture` without the noise; labels 0 to K - 1, and -1 for noise and trimmed rows.

**Reference:** Banfield, Raftery (1993), Model-Based Gaussian and Non-Gaussian Clustering (noise); Neykov, Filzmoser,
Dimova, Neytchev (2007), Robust Fitting of Mixtures Using the Trimmed Likelihood Estimator (trimming).

**Differs:** V is the smaller of two boxes around the rows, along the columns and along their principal axes (as mclust
has it). The start takes the rows that are farthest from their neighbours for noise, where none are given.

**Fails when:** noise is no more spread out than a group; with trimming, a group is as small as the share that goes.

**Cost:** a Gaussian mixture's, O(N K D^2) a step; the start O(N^2 D).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._ascent import ascend
from mixwell.density._gaussian import Array, log_positive
from mixwell.density._options import Configured
from mixwell.density.mixtures._parts import MixtureEstimator
from mixwell.density.mixtures.em.assigned import Emission
from mixwell.density.mixtures.em.loop import Params, select
from mixwell.density.mixtures.em.workers import Workers
from mixwell.density.mixtures.gaussian import GaussianMixture

NEIGHBOURS = 10
NOISE = -1  # the label


@dataclass(frozen=True)
class Config:
    """Options; `ValueError` for one out of range."""

    n_components: int = 1  # K, without the noise
    _: KW_ONLY
    noise: Any = 0.05  # share of the rows that starts as noise, or which they are (N,); None: no noise component
    trim: float = 0.0  # share of the rows that is left out; only without noise
    volume: float | None = None  # V; None: of the rows' smaller box
    covariance_type: str = "full"  # as `GaussianMixture`'s, like all that follow
    reg_covar: float = 1e-6
    tol: float = 1e-6
    max_iter: int = 500
    n_init: int = 1
    random_state: Any = None

    def __post_init__(self) -> None:
        share = self.noise if isinstance(self.noise, (int, float)) else 0.5
        if not 0 < share < 1 or not 0 <= self.trim < 1:
            raise ValueError(f"noise={self.noise!r}, trim={self.trim}; expected shares between 0 and 1.")
        if self.trim and self.noise is not None:
            raise ValueError(f"trim={self.trim} with noise={self.noise!r}; expected noise=None with trimming.")
        if self.volume is not None and not 0 < self.volume < math.inf:
            raise ValueError(f"volume={self.volume}; expected a number above 0.")


class State(NamedTuple):
    """Where a fit stands; the groups' weights add up to one."""

    noise_weight: float
    params: Params


def data_volume(x_ND: Array) -> float:
    """The smaller volume of two boxes around the rows: along the columns, and along their principal axes."""
    centred_ND = x_ND - x_ND.mean(0)
    _, _, axes_DD = np.linalg.svd(centred_ND, full_matrices=False)
    turned_ND = centred_ND @ axes_DD.T
    sides = [np.ptp(x_ND, axis=0), np.ptp(turned_ND, axis=0)]
    return float(min(np.prod(side_D) for side_D in sides))


@method(title="Gaussian mixture with noise or trimming", year=1993, tags={"estimator", "em", "sklearn"})
class NoisyGaussianMixture(DensityMixin, Configured, BaseEstimator, config=Config):
    """Gaussian mixture beside uniform noise, or of the rows that trimming leaves; options in `Config`."""

    components_: GaussianMixture

    def fit(self, X: Any, y: Any = None) -> NoisyGaussianMixture:
        """Fit to X (N, D); returns self. A `ValueError` for options or rows that are none that can be fitted to."""
        config = self._config()
        x_ND = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        apart_N = _first_noise(config, x_ND)
        self.volume_ = _volume(config, x_ND)
        base = _groups(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            base.fit(x_ND[~apart_N])
        rows = base._rows(x_ND)
        with Workers(rows.device) as workers:
            emission = Emission(workers, base._build_family(rows, None), rows)
            noise_weight = 0.0 if config.noise is None else float(apart_N.mean())
            start = State(noise_weight, base._warm_start(emission.family))
            run = ascend(lambda state: self._improve(config, emission, state), start, tol=config.tol,
                         max_iter=config.max_iter)
        if not run.converged:
            warnings.warn("the fit did not converge; raise max_iter or tol.", ConvergenceWarning, stacklevel=2)
        self._publish(base, emission, run.state, x_ND)
        self.log_likelihoods_, self.converged_ = run.bounds, run.converged
        return self

    def _improve(self, config: Config, emission: Emission, state: State) -> tuple[State, float]:
        """One step of EM, and the mean log density before it, of the rows that stay."""
        weights_K = state.params["weights"][0].numpy()
        log_groups_NK = emission.log_densities(state.params) + log_positive(weights_K)
        log_group_N = logsumexp(log_groups_NK, axis=1)
        within_NK = np.exp(log_groups_NK - log_group_N[:, None])
        log_N = _with_noise(log_group_N, state.noise_weight, self.volume_)
        grouped_N = np.exp(np.log1p(-state.noise_weight) + log_group_N - log_N)
        if config.trim:
            grouped_N = _kept(log_group_N, config.trim)
        params = emission.maximise(state.params, within_NK * grouped_N[:, None])
        bound = log_N[grouped_N > 0].mean() if config.trim else log_N.mean()
        noise_weight = 1 - grouped_N.mean() if config.noise is not None else 0.0
        return State(float(noise_weight), params), float(bound)

    def _publish(self, base: GaussianMixture, emission: Emission, state: State, x_ND: Array) -> None:
        mixture: MixtureEstimator = base
        mixture._publish(emission.family, select(state.params, 0), None)
        base.converged_ = True
        self.components_ = base
        self.noise_weight_ = state.noise_weight
        self.weights_ = base.weights_ * (1 - state.noise_weight)
        self.means_, self.covariances_ = base.means_, base.covariances_
        if self.trim:
            log_N = base.score_samples(x_ND)
            self.kept_ = _kept(log_N, self.trim) > 0
            self.threshold_ = float(log_N[self.kept_].min())

    def _read(self, X: Any) -> Array:
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False)

    def score_samples(self, X: Any) -> Array:
        """Log density of every row (N,), in nats, noise included; an error before `fit`."""
        log_group_N = self.components_.score_samples(self._read(X))
        return _with_noise(log_group_N, self.noise_weight_, self.volume_)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`; an error before `fit`."""
        return float(self.score_samples(X).mean())

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the groups, and last of the noise (N, K + 1); an error before `fit`."""
        x_ND = self._read(X)
        log_group_N = self.components_.score_samples(x_ND)
        log_N = _with_noise(log_group_N, self.noise_weight_, self.volume_)
        grouped_N1 = np.exp(np.log1p(-self.noise_weight_) + log_group_N - log_N)[:, None]
        within_NK = self.components_.predict_proba(x_ND)
        return np.hstack([within_NK * grouped_N1, 1 - grouped_N1])

    def predict(self, X: Any) -> Array:
        """The most probable group of every row (N,), -1 where that is noise, or below what trimming kept."""
        resp_NL = self.predict_proba(X)
        labels_N = resp_NL.argmax(1)
        K = len(self.weights_)
        labels_N[labels_N == K] = NOISE
        if self.trim:
            below_N = self.score_samples(X) < self.threshold_
            labels_N[below_N] = NOISE
        return labels_N

    def bic(self, X: Any) -> float:
        """Bayesian information criterion; lower is better. A noise weight counts as one number, V as none."""
        log_N = self.score_samples(X)
        numbers = self.components_._n_parameters() + (self.noise is not None)
        return float(numbers * np.log(len(log_N)) - 2 * log_N.sum())


def _groups(config: Config) -> GaussianMixture:
    """The groups' mixture, unfitted."""
    return GaussianMixture(config.n_components, covariance_type=config.covariance_type, reg_covar=config.reg_covar,
                           tol=config.tol, max_iter=config.max_iter, n_init=config.n_init,
                           random_state=config.random_state)


def _volume(config: Config, x_ND: Array) -> float:
    found = data_volume(x_ND) if config.volume is None else config.volume
    if config.noise is not None and not found > 0:
        raise ValueError("the rows take no volume: a column is constant, or some depend on others; give volume.")
    return found


def _first_noise(config: Config, x_ND: Array) -> Array:
    """Rows (N,) that do not take part in the start."""
    rows = len(x_ND)
    if config.noise is not None and np.ndim(config.noise):
        given_N = np.asarray(config.noise)
        if given_N.shape != (rows,) or given_N.dtype != bool:
            raise ValueError(f"noise has shape {given_N.shape} and type {given_N.dtype}; expected ({rows},) of bool.")
        return given_N
    share = config.trim if config.noise is None else config.noise
    count = min(math.ceil(share * rows), rows - config.n_components)
    apart_N = np.zeros(rows, dtype=bool)
    if count <= 0:
        return apart_N
    spread_D = np.maximum(x_ND.std(0), 1e-300)
    near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, rows - 1)).fit(x_ND / spread_D)
    distance_NJ, _ = near.kneighbors()
    farthest = distance_NJ[:, -1].argsort(kind="stable")[-count:]
    apart_N[farthest] = True
    return apart_N


def _with_noise(log_group_N: Array, noise_weight: float, volume: float) -> Array:
    """Log density of groups and noise together."""
    if noise_weight <= 0:
        return log_group_N
    log_noise = math.log(noise_weight) - math.log(volume)
    return np.logaddexp(math.log1p(-noise_weight) + log_group_N, log_noise)


def _kept(log_N: Array, trim: float) -> Array:
    """Ones for the rows that stay (N,), zeros for the share with the lowest density."""
    out = int(trim * len(log_N))
    kept_N = np.ones(len(log_N))
    lowest = log_N.argsort(kind="stable")[:out]
    kept_N[lowest] = 0.0
    return kept_N


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups, and a tenth of the rows anywhere."""
    centres_N1 = 6.0 * (torch.arange(120) % 2)[:, None]
    spread_N2 = torch.randn(120, 2, generator=generator)
    noise_M2 = 20 * torch.rand(12, 2, generator=generator)
    x_N2 = torch.cat([centres_N1 + spread_N2, noise_M2])
    estimator = NoisyGaussianMixture(2, random_state=0)
    return {"estimator": estimator, "X": x_N2.double().numpy()}
