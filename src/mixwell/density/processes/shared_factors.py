"""Shared Gaussian-process factors: one set of smooth courses behind the recordings of several subjects.

**Equation:** y_m(t) = W_m x(t) + d_m + N(0, diag(psi_m)), x_k ~ GP(0, k_k), k_k(t, t') = (1 - g) exp(-(t - t')^2 /
(2 l_k^2)) + g [t = t']: subjects share x and differ in loadings W_m, levels d_m, noise. With K = L L^T (block-diagonal
over factors), C = sum_m W_m^T psi_m^-1 W_m, M = I + L^T (C (x) I) L: the posterior of all courses has covariance L M^-1
L^T, and log p(Y) = -[log |M| + T sum log psi + |y|^2_psi - |M^-1/2 L^T W^T psi^-1 y|^2 + N T log 2 pi] / 2. EM: W, d
and psi in closed form, l_k by a search along tr(K_k^-1 E[x_k x_k^T]) + log |K_k|.

**Shapes:** Y a list of (T, Q_m), one of each subject; `times` (T,); `factors_` (T, K), `loadings_` a list of (Q_m, K).
In code N = sum Q_m.

**Reference:** Ebrahimi, Calarco, Campbell, Hawco, Voineskos, Khisti (2020), Time-Resolved fMRI Shared Response Model
using Gaussian Process Factor Analysis, arXiv:2006.05572; Yu et al. (2009), Gaussian-process factor analysis, for EM.

**Differs:** the courses are integrated out (exact EM, whose likelihood never falls), where the released code takes the
mode of courses and loadings together, which shrinks both. Loadings have no prior. Noise is by subject or by channel,
not their product. Levels are fitted; times may be uneven.

**Fails when:** courses have no smoothness to tell them from noise, or the same length scales: rotations of factors are
then alike, and what is found spans the right space in another basis. Subjects must share the clock.

**Cost:** O(K^3 T^3) time and O(K^2 T^2) memory an iteration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.linalg import block_diag, cho_solve, solve_triangular
from scipy.optimize import minimize_scalar
from sklearn.utils.validation import check_array, check_is_fitted

from mixwell.core.method import method
from mixwell.density._ascent import ascend
from mixwell.density._gaussian import LOG_2PI, Array, log_diagonal, outer
from mixwell.density._options import Configured


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of shared factors; `ValueError` for one out of range."""

    n_factors: int = 3  # K
    noise: Literal["subject", "channel"] = "channel"  # one variance a subject, or one a channel
    length_scale: float = 5.0  # the middle of the starts, in median steps of time
    nugget: float = 1e-3  # g: share of a factor's variance that is not smooth
    max_iter: int = 100
    tol: float = 1e-5  # stop when an iteration gains less, in nats a number

    def __post_init__(self) -> None:
        for name in ("n_factors", "length_scale", "max_iter"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} is {value}; expected above 0")
        if self.noise not in ("subject", "channel"):
            raise ValueError(f"noise is {self.noise!r}; expected 'subject' or 'channel'")
        if not 0 < self.nugget < 1 or self.tol < 0:
            raise ValueError(f"nugget and tol are {self.nugget} and {self.tol}; expected within (0, 1), and 0 or more")


class Model(NamedTuple):
    """Everything that is fitted; channels of all subjects side by side."""

    loadings_NK: Array
    level_N: Array
    noise_N: Array  # variances
    scales_K: Array  # length scales


class Courses(NamedTuple):
    """The posterior of factors."""

    mean_TK: Array
    cov_KTKT: Array
    log_likelihood: float


def kernel(times_T: Array, other_S: Array, scale: float, nugget: float) -> Array:
    """Covariances (T, S) of one factor at two sets of times."""
    gap_TS = times_T[:, None] - other_S
    smooth_TS = np.exp(-0.5 * (gap_TS / scale) ** 2)
    return (1 - nugget) * smooth_TS + nugget * (gap_TS == 0)


def infer(y_TN: Array, times_T: Array, model: Model, nugget: float) -> Courses:
    """The posterior of the factors given all channels, and the log likelihood of these."""
    T, N = y_TN.shape
    weighed_NK = model.loadings_NK / model.noise_N[:, None]
    C_KK = model.loadings_NK.T @ weighed_NK
    rest_TN = y_TN - model.level_N
    pull_TK = rest_TN @ weighed_NK
    root, lower = _roots(times_T, C_KK, model.scales_K, nugget)
    half = solve_triangular(lower, root.T, lower=True)
    pull = pull_TK.T.ravel()
    white = half @ pull
    log_det = 2 * log_diagonal(lower)
    log_noise = T * np.log(model.noise_N).sum()
    scaled_TN = rest_TN**2 / model.noise_N
    explained = white @ white
    squares = scaled_TN.sum() - explained
    constant = N * T * LOG_2PI
    total = log_det + log_noise + squares + constant
    mean = half.T @ white
    mean_KT = mean.reshape(-1, T)
    cov = half.T @ half
    cov_KTKT = cov.reshape(*mean_KT.shape, *mean_KT.shape)
    return Courses(mean_KT.T, cov_KTKT, float(-0.5 * total))


def _roots(times_T: Array, C_KK: Array, scales_K: Array, nugget: float) -> tuple[Array, Array]:
    """L and the lower root of M (K T, K T)."""
    roots = []
    for scale in scales_K:
        K_TT = kernel(times_T, times_T, scale, nugget)
        roots.append(np.linalg.cholesky(K_TT))
    root = block_diag(*roots)
    eye_TT = np.eye(len(times_T))
    seen = np.kron(C_KK, eye_TT)
    M = root.T @ seen @ root
    M[np.diag_indices_from(M)] += 1
    return root, np.linalg.cholesky(M)


def maximise_channels(y_TN: Array, found: Courses, group_N: Array) -> tuple[Array, Array, Array]:
    """Loadings (N, K), levels (N,) and noise variances (N,), one for all channels of a group."""
    T, K = found.mean_TK.shape
    ones_T = np.ones(T)
    design_TP = np.column_stack([found.mean_TK, ones_T])
    gram_PP = design_TP.T @ design_TP
    gram_PP[:K, :K] += np.einsum("ktlt->kl", found.cov_KTKT)
    cross_PN = design_TP.T @ y_TN
    coef_PN = np.linalg.solve(gram_PP, cross_PN)
    explained_PN = coef_PN * cross_PN
    squares_N = (y_TN**2).sum(0)
    left_N = squares_N - explained_PN.sum(0)
    noise_N = _by_group(left_N / T, group_N)
    floor = 1e-8 * y_TN.var() + 1e-300
    return coef_PN[:K].T, coef_PN[K], np.maximum(noise_N, floor)


def _by_group(values_N: Array, group_N: Array) -> Array:
    """Every channel's group's mean."""
    sum_G = np.bincount(group_N, weights=values_N)
    count_G = np.bincount(group_N)
    mean_G = sum_G / count_G
    return mean_G[group_N]


def maximise_scale(times_T: Array, second_TT: Array, scale: float, nugget: float) -> float:
    """The length scale under which a course of second moments `second_TT` is likeliest; the old one if none is better.

    Between a tenth of the shortest step and all of the time.
    """

    def loss(log_scale: float) -> float:
        scale = math.exp(log_scale)
        K_TT = kernel(times_T, times_T, scale, nugget)
        root_TT = np.linalg.cholesky(K_TT)
        ratio_TT = cho_solve((root_TT, True), second_TT)
        log_det = 2 * log_diagonal(root_TT)
        return float(ratio_TT.trace() + log_det)

    steps = np.diff(times_T)
    least = math.log(0.1 * steps.min())
    most = math.log(steps.sum())
    precision = {"xatol": 1e-3}
    best = minimize_scalar(loss, bounds=(least, most), method="bounded", options=precision)
    log_scale = math.log(scale)
    before = loss(log_scale)
    return math.exp(best.x) if best.fun < before else scale


def em_step(y_TN: Array, times_T: Array, group_N: Array, model: Model, nugget: float) -> tuple[Model, float]:
    """One step, and the log likelihood of the model that it starts from."""
    found = infer(y_TN, times_T, model, nugget)
    channels = maximise_channels(y_TN, found, group_N)
    scales = []
    for k, scale in enumerate(model.scales_K.tolist()):
        mean_T = found.mean_TK[:, k]
        cov_TT = found.cov_KTKT[k, :, k]
        second_TT = cov_TT + outer(mean_T, mean_T)
        best = maximise_scale(times_T, second_TT, scale, nugget)
        scales.append(best)
    moved = Model(*channels, np.array(scales))
    return moved, found.log_likelihood


def start(y_TN: Array, times_T: Array, group_N: Array, config: Config) -> Model:
    """Principal components of all channels, with length scales around the option's."""
    T, K = len(y_TN), config.n_factors
    level_N = y_TN.mean(0)
    rest_TN = y_TN - level_N
    _, sizes_S, right_SN = np.linalg.svd(rest_TN, full_matrices=False)
    scale_K = sizes_S[:K] / math.sqrt(T)
    loadings_NK = right_SN[:K].T * scale_K
    squares_N = (rest_TN**2).mean(0)
    left_N = squares_N - (loadings_NK**2).sum(1)
    least_N = 0.1 * squares_N + 1e-300
    noise_N = _by_group(np.maximum(left_N, least_N), group_N)
    steps = np.diff(times_T)
    middle = config.length_scale * np.median(steps)
    spread_K = np.linspace(1, -1, K) if K > 1 else np.zeros(1)
    return Model(loadings_NK, level_N, noise_N, middle * 2.0**spread_K)


@method(
    title="Shared Gaussian-process factors",
    paper="Time-Resolved fMRI Shared Response Model using Gaussian Process Factor Analysis",
    year=2020,
    tags={"estimator", "em"},
)
class SharedFactors(Configured, config=Config):
    """Smooth courses that several subjects share; see the module's card.

    After `fit`: `factors_` (T, K) posterior means, `factor_variances_` (T, K), `length_scales_` (K,), and in a list of
    the subjects `loadings_` (Q_m, K), `levels_` (Q_m,), `noise_` (Q_m,) variances; `log_likelihoods_` (nats, one an
    iteration, none below the one before), `n_iter_`, `converged_`.
    """

    def fit(self, Y: Any, y: Any = None, times: Any = None) -> SharedFactors:
        """Fit to recordings Y, a list of (T, Q_m); times (T,) rising, 0, 1, 2, ... where not given.

        `ValueError` for options out of range, recordings of different lengths, more factors than channels or times.
        """
        config = self._config()
        parts = _recordings(Y)
        y_TN = np.concatenate(parts, axis=1)
        times_T = _clock(times, len(y_TN))
        if config.n_factors > min(y_TN.shape):
            raise ValueError(f"n_factors is {config.n_factors}; expected at most {min(y_TN.shape)} for {len(y_TN)} "
                             f"times and {y_TN.shape[1]} channels")
        self._sizes = [part.shape[1] for part in parts]
        N = y_TN.shape[1]
        subject_N = np.repeat(np.arange(len(parts)), self._sizes)
        group_N = subject_N if config.noise == "subject" else np.arange(N)
        first = start(y_TN, times_T, group_N, config)
        run = ascend(
            lambda model: em_step(y_TN, times_T, group_N, model, config.nugget),
            first,
            tol=config.tol * y_TN.size,
            max_iter=config.max_iter,
        )
        self._publish(run.state)
        self.log_likelihoods_, self.converged_ = run.bounds, run.converged
        self.n_iter_ = len(run.bounds)
        found = infer(y_TN, times_T, run.state, config.nugget)
        self._courses = found
        self.factors_ = found.mean_TK
        self.factor_variances_ = np.einsum("ktkt->tk", found.cov_KTKT)
        return self

    def _publish(self, model: Model) -> None:
        loadings_NK, level_N, noise_N, self.length_scales_ = model
        ends = np.cumsum(self._sizes)
        cuts = ends[:-1]
        self.loadings_ = np.split(loadings_NK, cuts)
        self.levels_ = np.split(level_N, cuts)
        self.noise_ = np.split(noise_N, cuts)

    def _model(self, subjects: list[int]) -> Model:
        loadings_NK, level_N, noise_N = (
            np.concatenate([values[m] for m in subjects])
            for values in (self.loadings_, self.levels_, self.noise_)
        )
        return Model(loadings_NK, level_N, noise_N, self.length_scales_)

    def _seen(self, Y: Any, times: Any, subjects: Any) -> Courses:
        check_is_fitted(self)
        parts = _recordings(Y)
        known = range(len(self._sizes))
        chosen = list(known) if subjects is None else list(subjects)
        model = self._model(chosen)
        expected = [self._sizes[m] for m in chosen]
        given = [part.shape[1] for part in parts]
        if given != expected:
            raise ValueError(f"Y has {given} channels; expected {expected} of subjects {chosen}")
        y_TN = np.concatenate(parts, axis=1)
        times_T = _clock(times, len(y_TN))
        config = self._config()
        return infer(y_TN, times_T, model, config.nugget)

    def transform(self, Y: Any, times: Any = None, subjects: Any = None) -> Array:
        """Posterior means of the factors (T, K) behind other recordings of all subjects, or of those named; errors as
        in `fit`, and for channels that are not those of the subjects."""
        return self._seen(Y, times, subjects).mean_TK

    def score(self, Y: Any, y: Any = None, times: Any = None, subjects: Any = None) -> float:
        """Log likelihood in nats a time; arguments and errors as in `transform`."""
        found = self._seen(Y, times, subjects)
        return found.log_likelihood / len(found.mean_TK)

    def join(self, recording: Any) -> tuple[Array, Array, Array]:
        """Loadings (Q, K), levels (Q,) and noise (Q,) of another subject who was recorded along with those fitted.

        recording: (T, Q) at the times of the fit; `ValueError` for another length. Regression on the factors, whose
        uncertainty counts as ridge; nothing that is fitted changes.
        """
        check_is_fitted(self)
        y_TN = check_array(recording, dtype=np.float64)
        T = len(self.factors_)
        if len(y_TN) != T:
            raise ValueError(f"the recording has {len(y_TN)} times; expected {T}, those of the fit")
        group_N = np.arange(y_TN.shape[1])
        if self._config().noise == "subject":
            group_N = np.zeros_like(group_N)
        return maximise_channels(y_TN, self._courses, group_N)


def _recordings(Y: Any) -> list[Array]:
    parts = [check_array(part, dtype=np.float64) for part in Y]
    lengths = sorted({len(part) for part in parts})
    if len(lengths) != 1 or lengths[0] < 2:
        raise ValueError(f"Y has recordings of {lengths} times; expected one length for all, two or more")
    return parts


def _clock(times: Any, rows: int) -> Array:
    if times is None:
        return np.arange(rows, dtype=np.float64)
    times_T = np.asarray(times, dtype=np.float64)
    steps = np.diff(times_T)
    rising = (steps > 0).all()
    if times_T.shape != (rows,) or not rising:
        raise ValueError(f"times has shape {times_T.shape}; expected ({rows},), each later than the one before")
    return times_T


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two subjects who share a wave."""
    angle_T1 = torch.arange(30.0)[:, None] / 4
    recordings = []
    for _ in range(2):
        loading_Q = torch.randn(4, generator=generator)
        noise_TQ = torch.randn(30, 4, generator=generator)
        seen_TQ = angle_T1.sin() * loading_Q + 0.3 * noise_TQ
        recordings.append(seen_TQ.double().numpy())
    return {"estimator": SharedFactors(n_factors=1, max_iter=20), "Y": recordings}
