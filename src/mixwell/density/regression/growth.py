"""Growth mixture of experts: latent classes of nonlinear trajectories, with covariates in gates and in growth factors.

**Equation:** class k of person i has probability softmax_k(w_k0 + w_k . z_i); within it y_i = Lambda_i(knot_k) eta_i +
eps, eps ~ N(0, theta_k I), eta_i = alpha_k + B_k x_i + zeta, zeta ~ N(0, Psi_k). A bilinear spline has loadings
(1, t - knot, |t - knot|): the value at the knot, and the mean and half the difference of the two slopes. EM: with
A = Lambda' Lambda, r = y - Lambda (alpha + B x), V = (Psi^-1 + A / theta)^-1 and m = V Lambda' r / theta, the M step is
a regression of alpha + B x + m on x, and the moments of what is left; the knot then climbs the weighted likelihood.

**Shapes:** Y (N, J) with NaN where a wave was missed; times (J,) or (N, J); gate_X (N, D); growth_X (N, E); `coef_`
(K, 1 + E, L), `knots_` (K,), `growth_covariances_` (K, L, L), `noise_` (K,), `gate_coef_` (K, 1 + D). L = 3, linear 2.

**Reference:** Liu and Perera (2021), Extending Mixture of Experts Model to Investigate Heterogeneity of Trajectories:
When, Where and How to Add Which Covariates, arXiv:2007.02432.

**Differs:** EM instead of a structural-equation optimiser, with exact handling of waves missed at random. Standard
errors come from the outer product of the rows' scores. Screening covariates by structural-equation forests is not
here. Equations from memory.

**Fails when:** waves on one side of a knot are fewer than two; classes hold fewer people than growth factors and
covariates.

**Cost:** O(N K (J L^2 + L^3)) a step, about 25 of it for the knots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted

from mixwell.core.method import method
from mixwell.density._ascent import Run, ascend, highest
from mixwell.density._gaussian import Array, log_normal, outer
from mixwell.density._options import Configured
from mixwell.density.regression._fits import least_squares, raise_eigenvalues, start
from mixwell.density.regression._parts import Params, SoftmaxGates, check_common, with_intercept
from mixwell.density.regression._waves import OneClass, People, Waves, cut, pack, unpack


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the growth mixture of experts; `ValueError` for one out of range."""

    n_experts: int = 2  # K latent classes
    shape: Literal["bilinear", "linear"] = "bilinear"  # of a trajectory
    ridge: float = 1e-2  # penalty on squared gate slopes, in nats
    reg_covar: float = 1e-6  # smallest variance, as a share of y's
    tol: float = 1e-5  # stop when a step gains less, in nats a person
    max_iter: int = 300
    n_init: int = 1  # starts; the likeliest is kept
    init: str = "kmeans"  # of people's own curves: "kmeans" or "random" (cells of random people)
    random_state: Any = None  # of the starts

    def __post_init__(self) -> None:
        check_common(self)
        if self.shape not in ("bilinear", "linear"):
            raise ValueError(f"shape is {self.shape!r}; expected 'bilinear' or 'linear'")
        if self.ridge < 0:
            raise ValueError(f"ridge is {self.ridge}; expected 0 or more")
        if self.reg_covar <= 0:
            raise ValueError(f"reg_covar is {self.reg_covar}; expected a number above 0")


@dataclass(frozen=True)
class Posterior:
    """One class: log density of every person (N,), and moments of the growth factors' deviations."""

    log_N: Array
    m_NL: Array
    v_NLL: Array


def posterior(waves: Waves, mean_NL: Array, knot: float, psi_LL: Array, theta: float) -> Posterior:
    """Marginal log density and the posterior of zeta, by the determinant and inversion lemmas (L x L only)."""
    gram_NLL, cross_NL = waves.moments(knot)
    shift_NL = cross_NL - np.einsum("nlm,nm->nl", gram_NLL, mean_NL)  # Lambda' r
    explained_N = ((cross_NL + shift_NL) * mean_NL).sum(1)
    square_N = (waves.y_NJ**2).sum(1) - explained_N  # |r|^2
    precision_NLL = np.linalg.inv(psi_LL) + gram_NLL / theta
    v_NLL = np.linalg.inv(precision_NLL)
    m_NL = np.einsum("nlm,nm->nl", v_NLL, shift_NL) / theta
    _, log_psi = np.linalg.slogdet(psi_LL)
    _, log_precision_N = np.linalg.slogdet(precision_NLL)
    log_det_N = log_psi + log_precision_N
    counts_N = waves.seen_NJ.sum(1)
    removed_N = (shift_NL * m_NL).sum(1)
    distance_N = (square_N - removed_N) / theta
    log_scale_N = 0.5 * (counts_N * np.log(theta) + log_det_N)
    log_N = log_normal(distance_N, log_scale_N, counts_N)
    return Posterior(log_N, m_NL, v_NLL)


def maximise_class(people: People, resp_N: Array, one: OneClass, floor: float) -> OneClass:
    """EM's M step of one class's coefficients, `psi` and `theta`, then the knot's ascent."""
    waves, x_NP = people.waves, people.x_NP
    mean_NL = x_NP @ one.coef_PL
    found = posterior(waves, mean_NL, one.knot, one.psi_LL, one.theta)
    eta_NL = mean_NL + found.m_NL
    coef_PL = least_squares(x_NP, eta_NL, resp_N)
    mean_NL = x_NP @ coef_PL
    rest_NL = eta_NL - mean_NL
    spread_NLL = found.v_NLL + outer(rest_NL, rest_NL)
    total = max(resp_N.sum(), 1e-300)
    psi_LL = np.einsum("n,nlm->lm", resp_N, spread_NLL) / total
    psi_LL = raise_eigenvalues(psi_LL, floor)
    theta = _noise(waves, resp_N, eta_NL, found.v_NLL, one.knot)
    new = OneClass(coef_PL, psi_LL, max(theta, floor), one.knot)
    if waves.bilinear:
        knot = climb_knot(waves, mean_NL, resp_N, new)
        new = new._replace(knot=knot)
    return new


def _noise(waves: Waves, resp_N: Array, eta_NL: Array, v_NLL: Array, knot: float) -> float:
    """Mean square of what curves leave at a wave, their own uncertainty included."""
    gram_NLL, _ = waves.moments(knot)
    uncertain_N = np.einsum("nlm,nml->n", gram_NLL, v_NLL)
    square_N = waves.left(knot, eta_NL) + uncertain_N
    count_N = waves.seen_NJ.sum(1)
    seen = max(resp_N @ count_N, 1e-300)
    return resp_N @ square_N / seen


def climb_knot(waves: Waves, mean_NL: Array, resp_N: Array, one: OneClass) -> float:
    """A knot that does not lower the weighted log-likelihood, near the present one and between the waves."""
    def depth(knot: float) -> float:
        found = posterior(waves, mean_NL, knot, one.psi_LL, one.theta)
        likelihood = resp_N @ found.log_N
        return -float(likelihood)

    times = waves.times()
    first, last = times.min(), times.max()
    reach = 0.05 * (last - first)
    bounds = max(one.knot - reach, first), min(one.knot + reach, last)
    options = {"maxiter": 12}
    found = minimize_scalar(depth, bounds=bounds, method="bounded", options=options)
    if found.fun <= depth(one.knot):
        return float(found.x)
    return one.knot


@method(
    title="Growth mixture of experts",
    paper="Extending Mixture of Experts Model to Investigate Heterogeneity of Trajectories: When, Where and How to Add "
          "Which Covariates",
    year=2021,
    tags={"estimator", "em", "responsibilities"},
)
class GrowthMixtureOfExperts(Configured, config=Config):
    """Latent classes of trajectories; see the module's card and `Config`.

    Without `gate_X` the classes have constant shares; without `growth_X` the growth factors have constant means.
    Covariates are used as they come: centre them, so that intercepts mean something.
    """

    def fit(self, Y: Any, times: Any, gate_X: Any = None, growth_X: Any = None) -> GrowthMixtureOfExperts:
        """Fit to outcomes Y (N, J), NaN where missed, at times (J,) or (N, J).

        Raises a `ValueError` where shapes disagree, a person has no wave, or there are fewer people than classes.
        """
        config = self._config()
        people = self._read(Y, times, gate_X, growth_X, config.shape)
        waves = people.waves
        N = len(waves.y_NJ)
        if config.n_experts > N:
            raise ValueError(f"Y has {N} people for {config.n_experts} classes; give more")
        variance = float(waves.y_NJ[waves.seen_NJ].var())
        floor = config.reg_covar * max(variance, 1e-300)
        gates = SoftmaxGates(config.ridge)
        rng = check_random_state(config.random_state)
        runs = []
        for _ in range(config.n_init):
            first = self._first(people, gates, floor, config, rng)
            run = ascend(lambda params: self._step(people, gates, floor, params), first, tol=config.tol,
                         max_iter=config.max_iter)
            runs.append(run)
        self._shape = config.shape
        self._publish(highest(runs))
        return self

    def _publish(self, run: Run[Params]) -> None:
        self._params = run.state
        self.gate_coef_ = run.state["gate_coef"]
        self.coef_ = run.state["coef"]
        self.knots_ = run.state["knot"]
        self.growth_covariances_ = run.state["psi"]
        self.noise_ = run.state["theta"]
        self.lower_bounds_ = run.bounds
        self.converged_ = run.converged
        self.n_iter_ = len(run.bounds)

    def _read(self, Y: Any, times: Any, gate_X: Any, growth_X: Any, shape: str) -> People:
        y_NJ = check_array(Y, dtype=np.float64, ensure_all_finite="allow-nan")
        N, J = y_NJ.shape
        t_NJ = np.asarray(times, dtype=np.float64)
        if t_NJ.shape not in ((J,), (N, J)) or not np.isfinite(t_NJ).all():
            raise ValueError(f"times has shape {t_NJ.shape}; expected finite ({J},) or {y_NJ.shape}")
        seen_NJ = ~np.isnan(y_NJ)
        empty_N = ~seen_NJ.any(1)
        if empty_N.any():
            raise ValueError(f"row {int(np.flatnonzero(empty_N)[0])} of Y has no wave; remove it")
        filled_NJ = np.where(seen_NJ, y_NJ, 0.0)
        waves = Waves(filled_NJ, np.broadcast_to(t_NJ, y_NJ.shape), seen_NJ, shape == "bilinear")
        return People(waves, _covariates(gate_X, N, "gate_X"), _covariates(growth_X, N, "growth_X"))

    def _first(self, people: People, gates: SoftmaxGates, floor: float, config: Config,
               rng: np.random.RandomState) -> Params:
        """Parameters to begin with: every person's own curve about the knot that leaves least, in groups."""
        waves, K = people.waves, config.n_experts
        knots = np.zeros(1)
        if waves.bilinear:
            knots = np.quantile(waves.times(), np.linspace(0.15, 0.85, 15))
        curves = [_own_curves(waves, knot, floor) for knot in knots]
        left = [rest for _, rest in curves]
        best = int(np.argmin(left))
        eta_NL, rest = curves[best]
        resp_NK = start(eta_NL[:, :0], eta_NL, K, config.init, rng)
        coef = [least_squares(people.x_NP, eta_NL, resp_N) for resp_N in resp_NK.T]
        psi = [_spread(eta_NL - people.x_NP @ coef_PL, resp_N, floor) for coef_PL, resp_N in zip(coef, resp_NK.T)]
        theta = max(rest / waves.seen_NJ.sum(), floor)
        params = gates.maximise(people.z_NP, resp_NK, None)
        params |= {"coef": np.stack(coef), "psi": np.stack(psi)}
        return params | {"theta": np.full(K, theta), "knot": np.full(K, knots[best])}

    def _step(self, people: People, gates: SoftmaxGates, floor: float, params: Params) -> tuple[Params, float]:
        """New parameters, and the mean penalised log-likelihood of the old ones."""
        log_NK = log_joint(people, params)
        resp_NK = softmax(log_NK, axis=1)
        log_N = logsumexp(log_NK, axis=1)
        bound = log_N.sum() - gates.penalty(params)
        classes = []
        for k, resp_N in enumerate(resp_NK.T):
            old = OneClass.of(params, k)
            one = maximise_class(people, resp_N, old, floor)
            classes.append(one)
        coef, psi, theta, knot = map(np.stack, zip(*classes))
        new = gates.maximise(people.z_NP, resp_NK, params)
        new |= {
            "coef": coef,
            "psi": psi,
            "theta": theta,
            "knot": knot,
        }
        return new, bound / len(log_N)

    def _joint(self, Y: Any, times: Any, gate_X: Any, growth_X: Any) -> Array:
        check_is_fitted(self)
        people = self._read(Y, times, gate_X, growth_X, self._shape)
        return log_joint(people, self._params)

    def log_likelihood(self, Y: Any, times: Any, gate_X: Any = None, growth_X: Any = None) -> Array:
        """Log density of every person's waves (N,), in nats; a `ValueError` where shapes disagree."""
        return logsumexp(self._joint(Y, times, gate_X, growth_X), axis=1)

    def responsibilities(self, Y: Any, times: Any, gate_X: Any = None, growth_X: Any = None) -> Array:
        """Probability of every class given the waves (N, K); errors as in `fit`, and one before it."""
        return softmax(self._joint(Y, times, gate_X, growth_X), axis=1)

    def predict(self, Y: Any, times: Any, gate_X: Any = None, growth_X: Any = None) -> Array:
        """The most probable class of every person (N,); errors as in `fit`, and one before it."""
        return self._joint(Y, times, gate_X, growth_X).argmax(1)

    def growth_factors(self) -> Array:
        """Coefficients (K, 1 + E, L) of the value at t = 0, and of the slope or slopes before and after the knot.

        An error before `fit`.
        """
        check_is_fitted(self)
        if self._shape == "linear":
            return self.coef_
        at_knot, mean, half = np.moveaxis(self.coef_, 2, 0)
        before = mean - half
        after = mean + half
        at_zero = at_knot - self.knots_[:, None] * before
        return np.stack([at_zero, before, after], axis=2)

    def n_parameters(self) -> int:
        """Number of free parameters; an error before `fit`."""
        check_is_fitted(self)
        K, P, L = self.coef_.shape
        free_gates = self.gate_coef_[1:]
        knots = K if self._shape == "bilinear" else 0
        covariance = L * (L + 1) // 2
        own = P * L + covariance + 1
        return K * own + knots + free_gates.size

    def bic(self, Y: Any, times: Any, gate_X: Any = None, growth_X: Any = None) -> float:
        """Bayesian information criterion; lower is better."""
        log_N = self.log_likelihood(Y, times, gate_X, growth_X)
        penalty = self.n_parameters() * float(np.log(len(log_N)))
        return -2 * float(log_N.sum()) + penalty

    def standard_errors(self, Y: Any, times: Any, gate_X: Any = None, growth_X: Any = None) -> dict[str, Array]:
        """Standard errors of `gate_coef` (K - 1, 1 + D; against the last class), `coef` and `knot`, from the scores."""
        check_is_fitted(self)
        people = self._read(Y, times, gate_X, growth_X, self._shape)
        flat_V, shapes = pack(self._params, people.waves.bilinear)

        def log_likelihood(flat_V: Array) -> Array:
            return logsumexp(log_joint(people, unpack(flat_V, shapes)), axis=1)

        steps_V = 1e-5 * np.maximum(np.abs(flat_V), 1e-2)
        scores = []
        for step, step_V in zip(steps_V, np.diag(steps_V)):
            rise_N = log_likelihood(flat_V + step_V) - log_likelihood(flat_V - step_V)
            scores.append(rise_N / (2 * step))
        scores_NV = np.column_stack(scores)
        information_VV = scores_NV.T @ scores_NV
        variance_V = np.diag(np.linalg.pinv(information_VV))
        errors = cut(np.sqrt(variance_V), shapes)
        return {name: value for name, value in errors.items() if name in ("gate_coef", "coef", "knot")}


def log_joint(people: People, params: Params) -> Array:
    """Log gate plus log density of every person and class (N, K)."""
    columns = []
    for k in range(len(params["coef"])):
        one = OneClass.of(params, k)
        mean_NL = people.x_NP @ one.coef_PL
        found = posterior(people.waves, mean_NL, one.knot, one.psi_LL, one.theta)
        columns.append(found.log_N)
    log_density_NK = np.column_stack(columns)
    logits_NK = people.z_NP @ params["gate_coef"].T
    return log_softmax(logits_NK, axis=1) + log_density_NK


def _spread(rest_NL: Array, resp_N: Array, floor: float) -> Array:
    """Weighted covariance (L, L) of what a mean leaves."""
    L = rest_NL.shape[1]
    sample = np.cov(rest_NL.T, aweights=resp_N)
    return raise_eigenvalues(sample.reshape(L, L), floor)


def _own_curves(waves: Waves, knot: float, floor: float) -> tuple[Array, float]:
    """Every person's own, slightly shrunk, least-squares curve (N, L), and the squares that are left over all."""
    gram_NLL, cross_NL = waves.moments(knot)
    total_L = np.einsum("nll->l", gram_NLL)
    ridge_L = 1e-3 * total_L / len(gram_NLL) + floor
    shrunk_NLL = gram_NLL + np.diag(ridge_L)
    eta_NL1 = np.linalg.solve(shrunk_NLL, cross_NL[:, :, None])
    eta_NL = eta_NL1[:, :, 0]
    loading_NJL = waves.loadings(knot)
    fitted_NJ = np.einsum("njl,nl->nj", loading_NJL, eta_NL)
    rest_NJ = waves.y_NJ - fitted_NJ
    left = (rest_NJ**2).sum()
    return eta_NL, float(left)


def _covariates(value: Any, rows: int, name: str) -> Array:
    if value is None:
        return np.ones((rows, 1))
    x_ND = check_array(value, dtype=np.float64)
    if len(x_ND) != rows:
        raise ValueError(f"{name} has {len(x_ND)} rows for {rows} people; give one a person")
    return with_intercept(x_ND)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Forty people at six waves; half of them rise faster, at first."""
    times_J = torch.arange(6, dtype=torch.float64)
    fast_N = torch.arange(40) % 2
    slope_N = 1 + 2 * fast_N
    rise_J = times_J.clamp(max=3)
    level_N1 = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    noise_NJ = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    y_NJ = level_N1 + slope_N[:, None] * rise_J + 0.2 * noise_NJ
    estimator = GrowthMixtureOfExperts(max_iter=8, random_state=0)
    return {
        "estimator": estimator,
        "Y": y_NJ.numpy(),
        "times": times_J.numpy(),
    }
