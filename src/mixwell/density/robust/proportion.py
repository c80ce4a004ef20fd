"""Mixture proportion estimation: how much of a sample is the known component, also where the rest contains it.

**Equation:** F = (1 - kappa) G + kappa H, samples of F and H. Given alpha(x) >= P(Y = H | x) for x of F, keep each row
of F with probability alpha(x) and let c = E_F alpha; an estimator made for irreducible G finds kappa' on the kept rows,
and kappa = c kappa'. Bases: "roc", kappa' = inf over sets S = {score >= t} of F(S) / H(S), with confidence bands of
width sqrt(log(n) / n) on both, of a classifier of F against H; "kernel", 1 - 1 / lambda with lambda the point where the
distance of lambda F + (1 - lambda) H from the convex hull of the sample, in a Gaussian kernel's space, starts to rise.

**Shapes:** x_mixture (N, D), x_component (M, D), alpha (N,); a number in [0, 1].

**Reference:** Zhu, Fjeldsted, Holland, Landon, Lintereur, Scott (2023), Mixture Proportion Estimation Beyond
Irreducibility, arXiv:2306.01253; Scott (2015) for "roc"; Ramaswamy, Scott, Tewari (2016) for "kernel".

**Differs:** written from memory of the papers. c is the mean of alpha, not the kept share. The classifier is logistic
regression on powers and products up to the second; "kernel" stops at a quarter of the distance's limiting slope and
minimises over the simplex by accelerated projected gradients.

**Fails when:** alpha is below P(Y = H | x) somewhere (the estimate is then too small), or is one where G hides H (then
nothing is gained); few rows are kept.

**Cost:** "roc" O((N + M) D^2); "kernel" O((N + M)^2) times about 2000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.density._gaussian import Array


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of mixture proportion estimation; `ValueError` for one out of range."""

    base: Literal["roc", "kernel"] = "roc"  # the estimator that resampling wraps
    confidence: float = 0.5  # "roc": factor of sqrt(log(n) / n) in the bands
    max_lambda: float = 20.0  # "kernel": largest lambda tried; kappa' is at most 1 - 1 / max_lambda
    max_rows: int = 400  # "kernel": rows of each sample that are used

    def __post_init__(self) -> None:
        if self.base not in ("roc", "kernel"):
            raise ValueError(f"base is {self.base!r}; expected 'roc' or 'kernel'")
        if self.confidence < 0:
            raise ValueError(f"confidence is {self.confidence}; expected at least 0")
        if self.max_lambda <= 1:
            raise ValueError(f"max_lambda is {self.max_lambda}; expected above 1")
        if self.max_rows < 2:
            raise ValueError(f"max_rows is {self.max_rows}; expected at least 2")


def keep(alpha_N: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    """Which rows are kept (N,), and c, the chance that a row of F is."""
    chance_N = torch.rand(len(alpha_N), generator=generator, dtype=torch.float64)
    share = float(alpha_N.mean())
    return chance_N < alpha_N, share


def share_above(scores: Array, at: Array) -> Array:
    """Share of the scores that are at least each of some values."""
    below = np.searchsorted(np.sort(scores), at)
    return 1 - below / len(scores)


def band(scores: Array, confidence: float) -> float:
    """Half width of the uniform confidence band of a share."""
    n = len(scores)
    return confidence * np.sqrt(np.log(n) / n)


def roc_slope(score_F: Array, score_H: Array, confidence: float) -> float:
    """The least of (F(S) + band) / (H(S) - band) over sets of large scores; held-out scores of both samples."""
    order = np.unique(np.concatenate([score_F, score_H]))
    share_F = share_above(score_F, order)
    upper_F = share_F + band(score_F, confidence)
    share_H = share_above(score_H, order)
    band_H = band(score_H, confidence)
    lower_H = share_H - band_H
    useful = share_H > 2 * band_H
    slopes = (upper_F / lower_H)[useful]
    least = slopes.min(initial=1.0)
    return float(np.clip(least, 0.0, 1.0))


def to_simplex(v_N: Array) -> Array:
    """The nearest point of the probability simplex."""
    sorted_N = np.sort(v_N)[::-1]
    excess_N = np.cumsum(sorted_N) - 1
    rank_N = np.arange(1, len(v_N) + 1)
    mean_excess_N = excess_N / rank_N
    (stays,) = np.nonzero(sorted_N > mean_excess_N)
    shift = mean_excess_N[stays[-1]]
    return np.maximum(v_N - shift, 0.0)


def hull_distance(gram_NN: Array, u_N: Array, curvature: float, steps: int = 150) -> float:
    """min over w on the simplex of |sum u phi - sum w phi|, by accelerated projected gradients."""
    w_N = ahead_N = to_simplex(u_N)
    momentum = 1.0
    for _ in range(steps):
        slope_N = gram_NN @ (u_N - ahead_N)
        new_N = to_simplex(ahead_N + slope_N / curvature)
        following = 0.5 * (1 + np.sqrt(1 + 4 * momentum**2))
        inertia = (momentum - 1) / following
        ahead_N = new_N + inertia * (new_N - w_N)
        w_N = new_N
        momentum = following
    return length(gram_NN, u_N - w_N)


def length(gram_NN: Array, v_N: Array) -> float:
    """|sum v phi| in the kernel's space."""
    square = v_N @ gram_NN @ v_N
    return float(np.sqrt(max(square, 0.0)))  # rounding may bring it below zero


def kernel_proportion(x_F: Array, x_H: Array, max_lambda: float) -> float:
    """1 - 1 / lambda at which the distance from the hull rises by a quarter of its limiting slope."""
    gram_NN = gaussian_gram(np.concatenate([x_F, x_H]))
    M, N = len(x_F), len(x_H)
    even_F, even_H = np.full(M, 1 / M), np.full(N, 1 / N)
    mean_F = np.concatenate([even_F, np.zeros(N)])
    mean_H = np.concatenate([np.zeros(M), even_H])
    curvature = float(np.linalg.norm(gram_NN, 2))
    limit = length(gram_NN, mean_F - mean_H)

    def distance(scale: float) -> float:
        point = scale * mean_F + (1 - scale) * mean_H
        return hull_distance(gram_NN, point, curvature)

    low, high = 1.0, max_lambda
    while high - low > 0.02 * low:
        middle = 0.5 * (low + high)
        step = 0.05 * middle
        ahead, behind = distance(middle + step), distance(middle - step)
        slope = (ahead - behind) / (2 * step)
        if slope > 0.25 * limit:
            high = middle
        else:
            low = middle
    middle = 0.5 * (low + high)
    return 1 - 1 / middle


def gaussian_gram(x_ND: Array) -> Array:
    """Gaussian kernel (N, N) of width one where squared distances are their median."""
    gap_NND = x_ND[:, None] - x_ND
    square_NN = (gap_NND**2).sum(-1)
    apart = square_NN[square_NN > 0]
    width = np.median(apart)
    scaled_NN = square_NN / width
    return np.exp(-scaled_NN)


def _held_out_scores(x_F: Array, x_H: Array, generator: torch.Generator) -> tuple[Array, Array]:
    """Scores of each half by a classifier of the other half: larger where H is likelier."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import PolynomialFeatures, StandardScaler
    except ImportError as error:
        raise MixwellError("base='roc' needs scikit-learn: pip install 'mixwell[tables]'.") from error
    halves_F = _halves(len(x_F), generator)
    halves_H = _halves(len(x_H), generator)
    scores_F = np.empty(len(x_F))
    scores_H = np.empty(len(x_H))
    for mine in (0, 1):
        other = 1 - mine
        learn_F, learn_H = halves_F[other], halves_H[other]
        x = np.concatenate([x_F[learn_F], x_H[learn_H]])
        y = np.repeat([0, 1], [len(learn_F), len(learn_H)])
        classifier = LogisticRegression(max_iter=500)
        model = make_pipeline(StandardScaler(), PolynomialFeatures(2), classifier)
        model.fit(x, y)
        scores_F[halves_F[mine]] = model.decision_function(x_F[halves_F[mine]])
        scores_H[halves_H[mine]] = model.decision_function(x_H[halves_H[mine]])
    return scores_F, scores_H


def _halves(count: int, generator: torch.Generator) -> list[Array]:
    order = torch.randperm(count, generator=generator)
    return np.array_split(order.numpy(), 2)


def _some(x_ND: Tensor, most: int, generator: torch.Generator) -> Array:
    """At most so many rows, drawn without replacement."""
    order = torch.randperm(len(x_ND), generator=generator)
    return x_ND[order[:most]].numpy()


@method(
    title="Mixture proportion by resampling",
    paper="Mixture Proportion Estimation Beyond Irreducibility",
    year=2023,
    tags={"value"},
)
def mixture_proportion(x_mixture: Tensor, x_component: Tensor, config: Config, generator: torch.Generator, *,
                       alpha: Tensor | None = None) -> float:
    """The share of the component H in the mixture F; `alpha` None keeps every row, which is the base estimator.

    x_mixture (N, D), x_component (M, D), alpha (N,). `ValueError` where shapes do not fit, alpha leaves [0, 1], or
    fewer than ten rows of either remain; `MixwellError` where "roc" lacks scikit-learn.
    """
    x_FD = torch.as_tensor(x_mixture, dtype=torch.float64)
    x_HD = torch.as_tensor(x_component, dtype=torch.float64)
    if x_FD.ndim != 2 or x_HD.ndim != 2 or x_FD.shape[1] != x_HD.shape[1]:
        raise ValueError(f"samples have shapes {tuple(x_FD.shape)} and {tuple(x_HD.shape)}; expected rows of the same "
                         "columns")
    kept_share = 1.0
    if alpha is not None:
        alpha_N = torch.as_tensor(alpha, dtype=torch.float64)
        possible_N = (alpha_N >= 0) & (alpha_N <= 1)  # false for NaN, too
        if alpha_N.shape != x_FD.shape[:1] or not possible_N.all():
            raise ValueError(f"alpha has shape {tuple(alpha_N.shape)}; expected a number from 0 to 1 for each of "
                             f"{len(x_FD)} rows")
        kept_N, kept_share = keep(alpha_N, generator)
        x_FD = x_FD[kept_N]
    if len(x_FD) < 10 or len(x_HD) < 10:
        raise ValueError(f"{len(x_FD)} rows of the mixture are kept beside {len(x_HD)} of the component; expected at "
                         "least 10 of each")
    if config.base == "roc":
        score_F, score_H = _held_out_scores(x_FD.numpy(), x_HD.numpy(), generator)
        share = roc_slope(score_F, score_H, config.confidence)
    else:
        some_F = _some(x_FD, config.max_rows, generator)
        some_H = _some(x_HD, config.max_rows, generator)
        share = kernel_proportion(some_F, some_H, config.max_lambda)
    return kept_share * share


def example(generator: torch.Generator) -> dict[str, Any]:
    """Sixty points of which half are from the component."""
    group_N = torch.arange(60) % 2
    noise_N1 = torch.randn(60, 1, generator=generator)
    component_M1 = torch.randn(50, 1, generator=generator)
    return {
        "x_mixture": noise_N1 + 4.0 * group_N[:, None],
        "x_component": component_M1,
        "config": Config(),
        "generator": generator,
    }
