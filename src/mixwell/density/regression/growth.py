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
from mixwell.density._ascent import ascend, highest
from mixwell.density._gaussian import Array, log_normal, outer
from mixwell.density._options import Configured
from mixwell.density.regression._fits import least_squares, raise_eigenvalues
from mixwell.density.regression._parts import Params, SoftmaxGates, check_common, start, with_intercept


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the growth mixture of experts."""

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
        if self.ridge < 0 or self.reg_covar <= 0:
            raise ValueError(f"ridge is {self.ridge} and reg_covar {self.reg_covar}; expected 0 or more, and above 0")


@dataclass(frozen=True)
class Waves:
    """Outcomes and times, with zeros where `seen` is False."""

    y_NJ: Array
    t_NJ: Array
    seen_NJ: Array
    bilinear: bool

    def loadings(self, knot: float) -> Array:
        """Lambda (N, J, L), zero at missed waves."""
        gap_NJ = self.t_NJ - knot
        columns = [np.ones_like(gap_NJ), gap_NJ, np.abs(gap_NJ)][: 3 if self.bilinear else 2]
        return np.stack(columns, axis=2) * self.seen_NJ[:, :, None]

    def moments(self, knot: float) -> tuple[Array, Array]:
        """Lambda' Lambda (N, L, L) and Lambda' y (N, L)."""
        load_NJL = self.loadings(knot)
        return load_NJL.transpose(0, 2, 1) @ load_NJL, np.einsum("njl,nj->nl", load_NJL, self.y_NJ)


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
    square_N = (waves.y_NJ**2).sum(1) - ((cross_NL + shift_NL) * mean_NL).sum(1)  # |r|^2
    precision_NLL = np.linalg.inv(psi_LL) + gram_NLL / theta
    v_NLL = np.linalg.inv(precision_NLL)
    m_NL = np.einsum("nlm,nm->nl", v_NLL, shift_NL) / theta
    log_det_N = np.linalg.slogdet(psi_LL)[1] + np.linalg.slogdet(precision_NLL)[1]
    counts_N = waves.seen_NJ.sum(1)
    distance_N = (square_N - (shift_NL * m_NL).sum(1)) / theta
    log_scale_N = 0.5 * (counts_N * np.log(theta) + log_det_N)
    return Posterior(log_normal(distance_N, log_scale_N, counts_N), m_NL, v_NLL)


def maximise_class(waves: Waves, x_NP: Array, resp_N: Array, one: Params, floor: float) -> Params:
    """EM's M step of one class's `coef` (P, L), `psi` and `theta`, then the knot's ascent."""
    mean_NL = x_NP @ one["coef"]
    found = posterior(waves, mean_NL, float(one["knot"]), one["psi"], float(one["theta"]))
    eta_NL, total = mean_NL + found.m_NL, max(resp_N.sum(), 1e-300)
    coef_PL = least_squares(x_NP, eta_NL, resp_N)
    rest_NL = eta_NL - x_NP @ coef_PL
    psi_LL = np.einsum("n,nlm->lm", resp_N, found.v_NLL + outer(rest_NL, rest_NL)) / total
    gram_NLL, _ = waves.moments(float(one["knot"]))
    fitted_NJ = np.einsum("njl,nl->nj", waves.loadings(float(one["knot"])), eta_NL)
    noise_N = ((waves.y_NJ - fitted_NJ) ** 2).sum(1) + np.einsum("nlm,nml->n", gram_NLL, found.v_NLL)
    theta = max(resp_N @ noise_N / max(resp_N @ waves.seen_NJ.sum(1), 1e-300), floor)
    new = {"coef": coef_PL, "psi": raise_eigenvalues(psi_LL, floor), "theta": np.array(theta), "knot": one["knot"]}
    return new | {"knot": np.array(climb_knot(waves, x_NP @ coef_PL, resp_N, new))} if waves.bilinear else new


def climb_knot(waves: Waves, mean_NL: Array, resp_N: Array, one: Params) -> float:
    """A knot that does not lower the weighted log-likelihood, near the present one and between the waves."""
    def height(knot: float) -> float:
        return float(resp_N @ posterior(waves, mean_NL, knot, one["psi"], float(one["theta"])).log_N)

    times = waves.t_NJ[waves.seen_NJ]
    present, reach = float(one["knot"]), 0.05 * (times.max() - times.min())
    bounds = max(present - reach, times.min()), min(present + reach, times.max())
    found = minimize_scalar(lambda knot: -height(knot), bounds=bounds, method="bounded", options={"maxiter": 12})
    return float(found.x) if -found.fun >= height(present) else present


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
        """Fit to outcomes Y (N, J), NaN where missed, at times (J,) or (N, J)."""
        config = self._config()
        waves, z_NP, x_NP = self._read(Y, times, gate_X, growth_X, config.shape)
        if len(z_NP) < config.n_experts:
            raise ValueError(f"Y has {len(z_NP)} people for {config.n_experts} classes; give more")
        floor = config.reg_covar * max(float(waves.y_NJ[waves.seen_NJ].var()), 1e-300)
        gates, rng, runs = SoftmaxGates(config.ridge), check_random_state(config.random_state), []
        for _ in range(config.n_init):
            params = self._first(waves, z_NP, x_NP, gates, floor, config, rng)
            runs.append(ascend(lambda p: self._step(waves, z_NP, x_NP, gates, floor, p), params, tol=config.tol,
                               max_iter=config.max_iter))
        run = highest(runs)
        self._shape, self._params = config.shape, run.state
        self.gate_coef_, self.coef_, self.knots_ = run.state["gate_coef"], run.state["coef"], run.state["knot"]
        self.growth_covariances_, self.noise_ = run.state["psi"], run.state["theta"]
        self.lower_bounds_, self.converged_, self.n_iter_ = run.bounds, run.converged, len(run.bounds)
        return self

    def _read(self, Y: Any, times: Any, gate_X: Any, growth_X: Any, shape: str) -> tuple[Waves, Array, Array]:
        y_NJ = check_array(Y, dtype=np.float64, ensure_all_finite="allow-nan")
        t_NJ = np.asarray(times, dtype=np.float64)
        if t_NJ.shape not in ((y_NJ.shape[1],), y_NJ.shape) or not np.isfinite(t_NJ).all():
            raise ValueError(f"times has shape {t_NJ.shape}; expected finite ({y_NJ.shape[1]},) or {y_NJ.shape}")
        seen_NJ = ~np.isnan(y_NJ)
        if not seen_NJ.any(1).all():
            raise ValueError(f"row {int(np.flatnonzero(~seen_NJ.any(1))[0])} of Y has no wave; remove it")
        waves = Waves(np.where(seen_NJ, y_NJ, 0.0), np.broadcast_to(t_NJ, y_NJ.shape), seen_NJ, shape == "bilinear")
        return waves, _covariates(gate_X, len(y_NJ), "gate_X"), _covariates(growth_X, len(y_NJ), "growth_X")

    def _first(self, waves: Waves, z_NP: Array, x_NP: Array, gates: SoftmaxGates, floor: float, config: Config,
               rng: np.random.RandomState) -> Params:
        times = waves.t_NJ[waves.seen_NJ]
        knots = np.quantile(times, np.linspace(0.15, 0.85, 15)) if waves.bilinear else np.zeros(1)
        fits = [_own_curves(waves, knot, floor) for knot in knots]
        best = int(np.argmin([rest for _, rest in fits]))
        eta_NL, rest = fits[best]
        K, resp_NK = config.n_experts, start(eta_NL[:, :0], eta_NL, config.n_experts, config.init, rng)
        coef = np.stack([least_squares(x_NP, eta_NL, r) for r in resp_NK.T])
        psi = np.stack([raise_eigenvalues(np.cov((eta_NL - x_NP @ c).T, aweights=r).reshape(len(eta_NL.T), -1), floor)
                        for c, r in zip(coef, resp_NK.T)])
        theta = np.full(K, max(rest / waves.seen_NJ.sum(), floor))
        gate = gates.maximise(z_NP, resp_NK, None)
        return gate | {"coef": coef, "psi": psi, "theta": theta, "knot": np.full(K, knots[best])}

    def _step(self, waves: Waves, z_NP: Array, x_NP: Array, gates: SoftmaxGates, floor: float,
              params: Params) -> tuple[Params, float]:
        log_NK = log_joint(waves, z_NP, x_NP, params)
        log_N = logsumexp(log_NK, axis=1)
        resp_NK = softmax(log_NK, axis=1)
        ones = [maximise_class(waves, x_NP, resp_NK[:, k], _one(params, k), floor) for k in range(resp_NK.shape[1])]
        new = {name: np.stack([one[name] for one in ones]) for name in ("coef", "psi", "theta", "knot")}
        return gates.maximise(z_NP, resp_NK, params) | new, (log_N.sum() - gates.penalty(params)) / len(log_N)

    def _joint(self, Y: Any, times: Any, gate_X: Any, growth_X: Any) -> Array:
        check_is_fitted(self)
        return log_joint(*self._read(Y, times, gate_X, growth_X, self._shape), self._params)

    def log_likelihood(self, Y: Any, times: Any, gate_X: Any = None, growth_X: Any = None) -> Array:
        """Log density of every person's waves (N,), in nats."""
        return logsumexp(self._joint(Y, times, gate_X, growth_X), axis=1)

    def responsibilities(self, Y: Any, times: Any, gate_X: Any = None, growth_X: Any = None) -> Array:
        """Probability of every class given the waves (N, K)."""
        return softmax(self._joint(Y, times, gate_X, growth_X), axis=1)

    def predict(self, Y: Any, times: Any, gate_X: Any = None, growth_X: Any = None) -> Array:
        """The most probable class of every person (N,)."""
        return self._joint(Y, times, gate_X, growth_X).argmax(1)

    def growth_factors(self) -> Array:
        """Coefficients (K, 1 + E, L) of the value at t = 0, and of the slope or slopes before and after the knot."""
        check_is_fitted(self)
        if self._shape == "linear":
            return self.coef_
        at_knot, mean, half = np.moveaxis(self.coef_, 2, 0)
        before = mean - half
        return np.stack([at_knot - self.knots_[:, None] * before, before, mean + half], axis=2)

    def n_parameters(self) -> int:
        """Number of free parameters."""
        check_is_fitted(self)
        K, P, L = self.coef_.shape
        knots = K if self._shape == "bilinear" else 0
        return K * (P * L + L * (L + 1) // 2 + 1) + knots + (K - 1) * self.gate_coef_.shape[1]

    def bic(self, Y: Any, times: Any, gate_X: Any = None, growth_X: Any = None) -> float:
        """Bayesian information criterion; lower is better."""
        log_N = self.log_likelihood(Y, times, gate_X, growth_X)
        return -2 * float(log_N.sum()) + self.n_parameters() * float(np.log(len(log_N)))

    def standard_errors(self, Y: Any, times: Any, gate_X: Any = None, growth_X: Any = None) -> dict[str, Array]:
        """Standard errors of `gate_coef` (K - 1, 1 + D; against the last class), `coef` and `knot`, from the scores."""
        check_is_fitted(self)
        waves, z_NP, x_NP = self._read(Y, times, gate_X, growth_X, self._shape)
        flat, shapes = pack(self._params, waves.bilinear)
        steps = 1e-5 * np.maximum(np.abs(flat), 1e-2)
        scores_NV = np.column_stack([
            (logsumexp(log_joint(waves, z_NP, x_NP, unpack(flat + d, shapes)), axis=1)
             - logsumexp(log_joint(waves, z_NP, x_NP, unpack(flat - d, shapes)), axis=1)) / (2 * s)
            for s, d in zip(steps, np.diag(steps))])
        errors_V = np.sqrt(np.diag(np.linalg.pinv(scores_NV.T @ scores_NV)))
        return {name: value for name, value in _cut(errors_V, shapes).items() if name in ("gate_coef", "coef", "knot")}


def log_joint(waves: Waves, z_NP: Array, x_NP: Array, params: Params) -> Array:
    """Log gate plus log density of every person and class (N, K)."""
    ones = (_one(params, k) for k in range(len(params["coef"])))
    found = [posterior(waves, x_NP @ o["coef"], float(o["knot"]), o["psi"], float(o["theta"])).log_N for o in ones]
    return log_softmax(z_NP @ params["gate_coef"].T, axis=1) + np.column_stack(found)


def pack(params: Params, bilinear: bool) -> tuple[Array, dict[str, tuple[int, ...]]]:
    """Unconstrained free parameters as one vector: gates against the last class, log noise, Cholesky factors."""
    lower = np.tril_indices(params["psi"].shape[1])
    parts = {"gate_coef": params["gate_coef"][:-1] - params["gate_coef"][-1], "coef": params["coef"],
             "theta": np.log(params["theta"]), "psi": np.linalg.cholesky(params["psi"])[:, lower[0], lower[1]]}
    parts |= {"knot": params["knot"]} if bilinear else {}
    return np.concatenate([p.ravel() for p in parts.values()]), {name: p.shape for name, p in parts.items()}


def _cut(flat: Array, shapes: dict[str, tuple[int, ...]]) -> Params:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), np.split(flat, ends[:-1]))}


def unpack(flat: Array, shapes: dict[str, tuple[int, ...]]) -> Params:
    """The inverse of `pack`."""
    parts = _cut(flat, shapes)
    K, _, L = parts["coef"].shape
    factor = np.zeros((K, L, L))
    factor[:, *np.tril_indices(L)] = parts["psi"]
    gate_KP = np.vstack([parts["gate_coef"], np.zeros((1, parts["gate_coef"].shape[1]))])
    return {"gate_coef": gate_KP, "coef": parts["coef"], "theta": np.exp(parts["theta"]),
            "psi": factor @ factor.transpose(0, 2, 1), "knot": parts.get("knot", np.zeros(K))}


def _one(params: Params, k: int) -> Params:
    return {name: params[name][k] for name in ("coef", "psi", "theta", "knot")}


def _own_curves(waves: Waves, knot: float, floor: float) -> tuple[Array, float]:
    """Every person's own, slightly shrunk, least-squares curve (N, L), and the squares that are left over all."""
    gram_NLL, cross_NL = waves.moments(knot)
    ridge = 1e-3 * np.einsum("nll->l", gram_NLL) / len(gram_NLL) + floor
    eta_NL = np.linalg.solve(gram_NLL + np.diag(ridge), cross_NL[:, :, None])[:, :, 0]
    return eta_NL, float(((waves.y_NJ - np.einsum("njl,nl->nj", waves.loadings(knot), eta_NL)) ** 2).sum())


def _covariates(value: Any, rows: int, name: str) -> Array:
    if value is None:
        return np.ones((rows, 1))
    x_ND = check_array(value, dtype=np.float64)
    if len(x_ND) != rows:
        raise ValueError(f"{name} has {len(x_ND)} rows for {rows} people; give one a person")
    return with_intercept(x_ND)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Forty people at six waves; half of them grow faster, at first."""
    times_J = torch.arange(6, dtype=torch.float64)
    fast_N1 = (torch.arange(40) % 2)[:, None]
    curve_NJ = (1 + 2 * fast_N1) * times_J.clamp(max=3)
    level_N1 = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    noise_NJ = 0.2 * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    estimator = GrowthMixtureOfExperts(max_iter=8, random_state=0)
    return {"estimator": estimator, "Y": (level_N1 + curve_NJ + noise_NJ).numpy(), "times": times_J.numpy()}
