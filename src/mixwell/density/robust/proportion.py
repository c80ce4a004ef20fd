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
    """Options of mixture proportion estimation."""

    base: Literal["roc", "kernel"] = "roc"  # the estimator that resampling wraps
    confidence: float = 0.5  # "roc": factor of sqrt(log(n) / n) in the bands
    max_lambda: float = 20.0  # "kernel": largest lambda tried; kappa' is at most 1 - 1 / max_lambda
    max_rows: int = 400  # "kernel": rows of each sample that are used

    def __post_init__(self) -> None:
        if self.base not in ("roc", "kernel"):
            raise ValueError(f"base is {self.base!r}; expected 'roc' or 'kernel'")
        if self.confidence < 0 or self.max_lambda <= 1 or self.max_rows < 2:
            raise ValueError(f"confidence is {self.confidence}, max_lambda {self.max_lambda}, max_rows "
                             f"{self.max_rows}; expected at least 0, above 1, at least 2")


def keep(alpha_N: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    """Which rows are kept (N,), and c, the chance that a row of F is."""
    return torch.rand(len(alpha_N), generator=generator, dtype=torch.float64) < alpha_N, float(alpha_N.mean())


def roc_slope(score_F: Array, score_H: Array, confidence: float) -> float:
    """The least of (F(S) + band) / (H(S) - band) over sets of large scores; held-out scores of both samples."""
    order = np.unique(np.concatenate([score_F, score_H]))
    share_F = 1 - np.searchsorted(np.sort(score_F), order) / len(score_F)
    share_H = 1 - np.searchsorted(np.sort(score_H), order) / len(score_H)
    band_F, band_H = (confidence * np.sqrt(np.log(len(s)) / len(s)) for s in (score_F, score_H))
    useful = share_H > 2 * band_H
    return float(np.clip(((share_F + band_F) / (share_H - band_H))[useful].min(initial=1.0), 0.0, 1.0))


def to_simplex(v_N: Array) -> Array:
    """The nearest point of the probability simplex."""
    sorted_N = np.sort(v_N)[::-1]
    excess_N = np.cumsum(sorted_N) - 1
    last = np.flatnonzero(sorted_N > excess_N / np.arange(1, len(v_N) + 1))[-1]
    return np.maximum(v_N - excess_N[last] / (last + 1), 0.0)


def hull_distance(gram_NN: Array, u_N: Array, curvature: float, steps: int = 150) -> float:
    """min over w on the simplex of |sum u phi - sum w phi|, by accelerated projected gradients."""
    w_N = ahead_N = to_simplex(u_N)
    momentum = 1.0
    for _ in range(steps):
        new_N = to_simplex(ahead_N + gram_NN @ (u_N - ahead_N) / curvature)
        following = 0.5 * (1 + np.sqrt(1 + 4 * momentum**2))
        ahead_N = new_N + (momentum - 1) / following * (new_N - w_N)
        w_N, momentum = new_N, following
    rest_N = u_N - w_N
    return float(np.sqrt(max(rest_N @ gram_NN @ rest_N, 0.0)))


def kernel_proportion(x_F: Array, x_H: Array, max_lambda: float) -> float:
    """1 - 1 / lambda at which the distance from the hull rises by a quarter of its limiting slope."""
    both = np.concatenate([x_F, x_H])
    square_NN = ((both[:, None] - both) ** 2).sum(-1)
    gram_NN = np.exp(-square_NN / np.median(square_NN[square_NN > 0]))
    mean_F = np.concatenate([np.full(len(x_F), 1 / len(x_F)), np.zeros(len(x_H))])
    mean_H = np.concatenate([np.zeros(len(x_F)), np.full(len(x_H), 1 / len(x_H))])
    curvature = float(np.linalg.norm(gram_NN, 2))
    limit = float(np.sqrt(max((mean_F - mean_H) @ gram_NN @ (mean_F - mean_H), 0.0)))

    def distance(scale: float) -> float:
        return hull_distance(gram_NN, scale * mean_F + (1 - scale) * mean_H, curvature)

    low, high = 1.0, max_lambda
    while high - low > 0.02 * low:
        middle = 0.5 * (low + high)
        step = 0.05 * middle
        rising = (distance(middle + step) - distance(middle - step)) / (2 * step) > 0.25 * limit
        low, high = (low, middle) if rising else (middle, high)
    return 1 - 1 / (0.5 * (low + high))


def _held_out_scores(x_F: Array, x_H: Array, generator: torch.Generator) -> tuple[Array, Array]:
    """Scores of each half by a classifier of the other half: larger where H is likelier."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import PolynomialFeatures, StandardScaler
    except ImportError as error:
        raise MixwellError("base='roc' needs scikit-learn: pip install 'mixwell[tables]'.") from error
    halves_F, halves_H = (np.array_split(torch.randperm(len(x), generator=generator).numpy(), 2) for x in (x_F, x_H))
    scores_F, scores_H = np.empty(len(x_F)), np.empty(len(x_H))
    for mine, other in ((0, 1), (1, 0)):
        x = np.concatenate([x_F[halves_F[other]], x_H[halves_H[other]]])
        y = np.repeat([0, 1], [len(halves_F[other]), len(halves_H[other])])
        model = make_pipeline(StandardScaler(), PolynomialFeatures(2), LogisticRegression(max_iter=500)).fit(x, y)
        scores_F[halves_F[mine]] = model.decision_function(x_F[halves_F[mine]])
        scores_H[halves_H[mine]] = model.decision_function(x_H[halves_H[mine]])
    return scores_F, scores_H


@method(
    title="Mixture proportion by resampling",
    paper="Mixture Proportion Estimation Beyond Irreducibility",
    year=2023,
    tags={"value"},
)
def mixture_proportion(x_mixture: Tensor, x_component: Tensor, config: Config, generator: torch.Generator, *,
                       alpha: Tensor | None = None) -> float:
    """The share of the component H in the mixture F; `alpha` None keeps every row, which is the base estimator."""
    x_FD, x_HD = (torch.as_tensor(x, dtype=torch.float64) for x in (x_mixture, x_component))
    if x_FD.ndim != 2 or x_HD.ndim != 2 or x_FD.shape[1] != x_HD.shape[1]:
        raise ValueError(f"samples have shapes {tuple(x_FD.shape)} and {tuple(x_HD.shape)}; expected rows of the same "
                         "columns")
    kept_share = 1.0
    if alpha is not None:
        alpha_N = torch.as_tensor(alpha, dtype=torch.float64)
        if alpha_N.shape != x_FD.shape[:1] or bool(((alpha_N < 0) | (alpha_N > 1) | alpha_N.isnan()).any()):
            raise ValueError(f"alpha has shape {tuple(alpha_N.shape)}; expected a number from 0 to 1 for each of "
                             f"{len(x_FD)} rows")
        kept, kept_share = keep(alpha_N, generator)
        x_FD = x_FD[kept]
    if len(x_FD) < 10 or len(x_HD) < 10:
        raise ValueError(f"{len(x_FD)} rows of the mixture are kept beside {len(x_HD)} of the component; expected at "
                         "least 10 of each")
    if config.base == "roc":
        return kept_share * roc_slope(*_held_out_scores(x_FD.numpy(), x_HD.numpy(), generator), config.confidence)
    some_F, some_H = (x[torch.randperm(len(x), generator=generator)[: config.max_rows]].numpy() for x in (x_FD, x_HD))
    return kept_share * kernel_proportion(some_F, some_H, config.max_lambda)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Sixty points of which half are from the component."""
    shift_N = 4.0 * (torch.arange(60) % 2)
    return {"x_mixture": torch.randn(60, 1, generator=generator) + shift_N[:, None],
            "x_component": torch.randn(50, 1, generator=generator), "config": Config(), "generator": generator}
