"""Bayesian Gaussian mixture: priors on weights, means and precisions, and their posteriors by variational inference.

**Equation:** q(pi) q(mu_k, Lambda_k) with pi ~ Dirichlet(alpha_0 + N_k), or sticks v_k ~ Beta(1 + N_k, alpha_0 +
    sum_(j > k) N_j) and pi_k = v_k prod_(j < k) (1 - v_j); mu_k ~ N(m_k, (beta_k Lambda_k)^-1); Lambda_k ~ Wishart with
    nu_k = nu_0 + N_k, beta_k = beta_0 + N_k, m_k = (beta_0 m_0 + N_k xbar_k) / beta_k and
    nu_k E[Lambda_k]^-1 = W_0 + N_k S_k + beta_0 N_k / beta_k (xbar_k - m_0)(xbar_k - m_0)^T.
    E step: log r_nk = E[log pi_k] + E[log N(x_n; mu_k, Lambda_k^-1)] + constant.

**Shapes:** X (N, D); `weights_` (K,), `means_`, `covariances_`, `precisions_` as `GaussianMixture`'s, the posteriors'
means (of precisions; covariances are their inverses); `mean_precision_` (K,), `degrees_of_freedom_` (K,) or a number
where tied; `weight_concentration_` (K,), of sticks a pair of (K,).

**Reference:** Bishop (2006), Pattern Recognition and Machine Learning, section 10.2; Blei, Jordan (2006), Variational
Inference for Dirichlet Process Mixtures; scikit-learn's estimator of the same name, whose numbers these are.

**Differs:** `sample_weight` (repetitions, also in the priors that are taken from the data), tensors and files as
`GaussianMixture`. `reg_covar` is added to S_k, as scikit-learn does, so that the bound may fall by what that is worth;
the last stick may leave a rest, and tied precisions get N / K rows each, as there. A tied start from single rows takes
those rows alone, scikit-learn's the scatter of all.

**Fails when:** `score_samples` is taken for a density: it is exp E[log p], which integrates to less than one; the
order of components counts with sticks, so that a start with the largest cluster last is a worse one.

**Cost:** as `GaussianMixture`: O(N K D^2) a step (full).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.density.mixtures._normal import NormalMixture
from mixwell.density.mixtures._scores import as_array
from mixwell.density.mixtures.em.frame import Frame
from mixwell.density.mixtures.em.kernels import MATRICES
from mixwell.density.mixtures.em.loop import Params, Run, climb, step
from mixwell.density.mixtures.em.progress import Progress
from mixwell.density.mixtures.em.rows import Rows, locate_infinite
from mixwell.density.mixtures.em.variational import Prior, Variational, concentrations
from mixwell.density.mixtures.em.workers import Workers

POSITIVE = Interval(Real, 0.0, None, closed="neither")
FREE = ("n_components", "tol", "max_iter", "n_init", "init_params", "random_state", "warm_start", "verbose",
        "verbose_interval")  # options of every mixture that this one has


@dataclass(frozen=True, kw_only=True)
class Config:
    """scikit-learn's options."""

    n_components: int = 1  # K, the most that may be
    covariance_type: str = "full"  # or "tied", "diag", "spherical"
    tol: float = 1e-3  # stop when a step moves the bound by less, in nats of all rows together
    reg_covar: float = 1e-6  # added to variances
    max_iter: int = 100
    n_init: int = 1  # starts; the one with the highest bound is kept
    init_params: str = "kmeans"  # or "k-means++", "random", "random_from_data"
    weight_concentration_prior_type: str = "dirichlet_process"  # or "dirichlet_distribution"
    weight_concentration_prior: float | None = None  # alpha_0; None: 1 / K
    mean_precision_prior: float | None = None  # beta_0; None: 1
    mean_prior: Any = None  # m_0 (D,); None: the mean of the rows
    degrees_of_freedom_prior: float | None = None  # nu_0, above D - 1; None: D
    covariance_prior: Any = None  # W_0, shaped as one covariance; None: that of the rows
    random_state: Any = None
    warm_start: bool = False  # start from the last fit
    verbose: int = 0
    verbose_interval: int = 10


@method(title="Bayesian Gaussian mixture", year=2006,
        tags={"estimator", "em", "responsibilities", "float32", "sklearn"})
class BayesianGaussianMixture(NormalMixture, config=Config):
    """scikit-learn's estimator of this name: same parameters, attributes and numbers; `fit` takes `sample_weight`."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **{name: NormalMixture._parameter_constraints[name] for name in FREE},
        "covariance_type": [StrOptions({"full", "tied", "diag", "spherical"})],
        "reg_covar": [Interval(Real, 0.0, None, closed="left")],
        "weight_concentration_prior_type": [StrOptions({"dirichlet_process", "dirichlet_distribution"})],
        "weight_concentration_prior": [None, POSITIVE],
        "mean_precision_prior": [None, POSITIVE],
        "mean_prior": [None, "array-like"],
        "degrees_of_freedom_prior": [None, POSITIVE],
        "covariance_prior": [None, "array-like", POSITIVE],
    }
    _allow_nan = False
    _distributable = False  # priors are taken from all rows
    _averages = False
    fixed = batch_size = init_size = None  # options of other mixtures that have no meaning here
    weights_init = means_init = precisions_init = None

    def _check_start(self, rows: Rows) -> None:
        """Refuse priors of a wrong shape or size."""
        D = rows.n_columns
        dofs = self.degrees_of_freedom_prior
        if dofs is not None and dofs <= D - 1:
            raise ValueError(f"The parameter 'degrees_of_freedom_prior' should be greater than {D - 1}, but got "
                             f"{dofs:.3f}.")
        if self.mean_prior is not None:
            _check_shape("mean_prior", self.mean_prior, (D,))
        if self.covariance_prior is not None:
            shapes = {"full": (D, D), "tied": (D, D), "diag": (D,), "spherical": ()}
            shape: tuple[int, ...] = shapes[self.covariance_type]
            _check_shape("covariance_prior", self.covariance_prior, shape)
            _check_positive(self.covariance_prior)

    def _build_family(self, rows: Rows, weights_N: Tensor | None) -> Variational:
        floor = self._floor()
        frame = Frame.of(rows, weights_N, self._units(), floor)
        self._warn_of_columns(frame, rows)
        prior = self._prior(rows, weights_N, frame)
        floor_D = torch.full_like(frame.shift_D, floor)
        return Variational(self.covariance_type, frame, floor_D, prior)

    def _prior(self, rows: Rows, weights_N: Tensor | None, frame: Frame) -> Prior:
        """The priors that are given, and for the others those that the rows suggest."""
        mean_D, covariance_DD = _moments(rows, weights_N, frame.shift_D)
        covariance = _reduced(self.covariance_type, covariance_DD)
        if self.mean_prior is not None:
            mean_D = _like(self.mean_prior, mean_D)
        if self.covariance_prior is not None:
            covariance = _like(self.covariance_prior, mean_D)
        concentration = _given(self.weight_concentration_prior, 1 / self.n_components)
        precision = _given(self.mean_precision_prior, 1.0)
        dofs = _given(self.degrees_of_freedom_prior, rows.n_columns)
        return Prior(self._sticks, concentration, precision, mean_D, dofs, covariance)

    @property
    def _sticks(self) -> bool:
        return bool(self.weight_concentration_prior_type == "dirichlet_process")

    def _climb(self, workers: Workers, family: Any, rows: Rows, weights_N: Tensor | None, starts: list[Params],
               previous: float) -> list[Run]:
        """Variational EM from every start; the bound that counts is that of the new posteriors."""
        def one_step(params: Params) -> tuple[Params, Tensor]:
            batch = params["weights"].numel()
            new, likelihood_S = step(workers, family, rows, weights_N, params, batch=batch)
            if not bool(likelihood_S.isfinite().all()):
                locate_infinite(rows)
            return new, new["bound"]

        runs = []
        for number, start in enumerate(starts):
            progress = Progress(self.verbose, self.verbose_interval, number)
            runs += self._one_climb(one_step, start, previous, progress)
        return runs

    def _one_climb(self, one_step: Callable[[Params], Any], start: Params, previous: float,
                   progress: Progress) -> list[Run]:
        found = climb(one_step, start, tol=self.tol, max_iter=self.max_iter, previous=previous,
                      report=progress.iteration)
        progress.end(found[0])
        return found

    def _publish(self, family: Any, params: Params, like: Any) -> None:
        super()._publish(family, params, like)
        prior = family.prior
        count_1K = params["count"][None]
        dofs_K = family.dofs(count_1K)[0]
        values = {"mean_prior": prior.mean_D, "covariance_prior": prior.covariance,
                  "mean_precision": family.mean_precisions(count_1K)[0],
                  "degrees_of_freedom": dofs_K[0] if family.kind == "tied" else dofs_K}
        for name, value in values.items():
            setattr(self, f"{name}_", self._emit(value, like))
        self.weight_concentration_prior_ = prior.concentration
        self.mean_precision_prior_ = prior.mean_precision
        self.degrees_of_freedom_prior_ = prior.dofs
        taken_K, left_K = (self._emit(value[0], like) for value in concentrations(prior, count_1K))
        own_K = self._emit(prior.concentration + params["count"], like)
        self.weight_concentration_ = (taken_K, left_K) if prior.sticks else own_K

    def _warm(self, family: Any) -> Params:
        """Posteriors of the last fit, under the priors of the family."""
        frame = family.frame
        seen_K = torch.as_tensor(self.mean_precision_) - self.mean_precision_prior_
        count_1K = _like(seen_K, frame.shift_D)[None].clamp(min=0)
        means_1KD = _like(self.means_, frame.shift_D)[None]
        covariances = _like(self.covariances_, frame.shift_D)[None]
        params = family.completed_posterior(count_1K, means_1KD, covariances)
        bound_1 = count_1K.new_full((1,), self.lower_bound_ if hasattr(self, "lower_bound_") else -torch.inf)
        return {name: value[0] for name, value in params.items()} | {"bound": bound_1[0]}

    def _make_family(self, *arguments: Any) -> Variational:
        """The family that scores, under the priors of the fit."""
        kind, frame, regularisation_D, _, _ = arguments
        mean_D = _like(self.mean_prior_, frame.shift_D)
        covariance = _like(self.covariance_prior_, frame.shift_D)
        prior = Prior(self._sticks, self.weight_concentration_prior_, self.mean_precision_prior_, mean_D,
                      self.degrees_of_freedom_prior_, covariance)
        return Variational(kind, frame, regularisation_D, prior)

    def _criterion(self, X: Any, sample_weight: Any, price: Any) -> float:
        raise MixwellError("a Bayesian mixture has no bic, aic or icl, which price estimates without priors; compare "
                           "lower_bound_ of fits to the same rows with the same priors.")


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _like(value: Any, other: Tensor) -> Tensor:
    """A value as a tensor of another's type, on its device."""
    array = as_array(value)
    return torch.tensor(array).to(other)


def _moments(rows: Rows, weights_N: Tensor | None, origin_D: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of the rows, summed about an origin."""
    D = len(origin_D)
    count = origin_D.new_zeros(())
    first_D, second_DD = origin_D.new_zeros(D), origin_D.new_zeros(D, D)
    for start, chunk in rows.chunks():
        away_BD = chunk.double() - origin_D
        weight_B1 = torch.ones_like(away_BD[:, :1])
        if weights_N is not None:
            weight_B1 = weights_N[start : start + len(chunk), None]
        weighted_BD = away_BD * weight_B1
        count = count + weight_B1.sum()
        first_D += weighted_BD.sum(0)
        second_DD += weighted_BD.T @ away_BD
    offset_D = first_D / count
    scatter_DD = second_DD - count * torch.outer(offset_D, offset_D)
    return origin_D + offset_D, scatter_DD / (count - 1)


def _reduced(kind: str, covariance_DD: Tensor) -> Tensor:
    """A covariance in the shape of the type's prior."""
    if kind in MATRICES:
        return covariance_DD
    variance_D = covariance_DD.diagonal().clone()
    return variance_D if kind == "diag" else variance_D.mean()


def _check_shape(name: str, value: Any, shape: tuple[int, ...]) -> None:
    found = as_array(value).shape
    if found != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {found}")


def _check_positive(covariance: Any) -> None:
    """Refuse a prior covariance that is not symmetric and positive definite."""
    array = as_array(covariance).astype(np.float64)
    if array.ndim < 2:
        good = bool((array > 0).all())
    else:
        values_D = np.linalg.eigvalsh(array)
        good = np.allclose(array, array.T) and bool((values_D > 0).all())
    if not good:
        raise ValueError("The parameter 'covariance_prior' should be symmetric, positive-definite, or of positive "
                         "variances.")


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups of points in the plane, and an estimator that may use up to four."""
    centres_2D = torch.tensor([[-3.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    centres_ND = centres_2D.repeat_interleave(60, 0)
    noise_ND = torch.randn(120, 2, generator=generator, dtype=torch.float64)
    x_ND = centres_ND + noise_ND
    return {"estimator": BayesianGaussianMixture(n_components=4, random_state=0), "X": x_ND.numpy()}
