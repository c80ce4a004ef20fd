"""Slope heuristic: the penalty for a model's size read off the data.

**Equation:** for large models -loglik(m) falls like -s D_m, with D_m free parameters; the criterion is crit(m) =
-loglik(m) + 2 s D_m, the smallest wins, where s is the slope of a robust line through the larger models (0 where the
line falls).

**Shapes:** log-likelihoods (M,) in nats over all rows and dimensions (M,), in any order, in; index of the chosen model,
slope in nats a parameter, criterion (M,) out.

**Reference:** Baudry, Maugis, Michel (2012), Slope heuristics: overview and implementation, sections 3 and 4.

**Differs:** the number of large models for the line is the one in the middle of the longest run of equal choices (the
paper's plateau), the line by iteratively reweighted least squares (Huber).

**Fails when:** there are fewer than four models (`ValueError`), or the likelihood has not become linear in the
dimension (no plateau).

**Cost:** O(M^2) times some twenty reweightings.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """How lines are drawn; `ValueError` for a value out of range."""

    min_models: int = 3  # the fewest models that a line goes through, at least 2
    huber: float = 1.345  # residuals beyond so many robust standard deviations count less; large: least squares

    def __post_init__(self) -> None:
        if self.min_models < 2 or not self.huber > 0:
            raise ValueError(f"min_models={self.min_models}, huber={self.huber}; expected at least 2 and above 0.")


@method(title="Slope heuristic", year=2012, paper="Slope heuristics: overview and implementation",
        tags={"value"})
def slope_heuristic(log_likelihoods: np.ndarray, dimensions: np.ndarray,
                    config: Config | None = None) -> tuple[int, float, np.ndarray]:
    """Index of the chosen model, the slope s, and the criterion of every model (M,).

    log_likelihoods: (M,), nats over all rows; dimensions: (M,), free parameters. A `ValueError` where there are fewer
    than four models, or fewer than `min_models`.
    """
    config = config or Config()
    y, d = np.asarray(log_likelihoods, float), np.asarray(dimensions, float)
    if y.shape != d.shape or y.ndim != 1 or len(y) < 4:
        raise ValueError(f"got {y.shape} log-likelihoods and {d.shape} dimensions; expected at least four of each.")
    finite = np.isfinite(y) & np.isfinite(d)
    if len(y) < config.min_models or not finite.all():
        raise ValueError(f"got {len(y)} models, {np.count_nonzero(~finite)} of them not finite; "
                         f"expected at least min_models={config.min_models} finite ones.")
    order = np.argsort(d)
    choices, slopes = [], []
    for first in range(len(y) - config.min_models + 1):  # lines through the models from `first` on
        large = order[first:]
        slope = max(_line(d[large], y[large], config.huber), 0.0)
        criterion = 2 * slope * d - y
        slopes.append(slope)
        choices.append(int(np.argmin(criterion)))
    best = _longest_run(choices)
    slope = slopes[best]
    criterion = 2 * slope * d - y
    return int(np.argmin(criterion)), float(slope), criterion


def _line(x: np.ndarray, y: np.ndarray, huber: float) -> float:
    """Slope of a robust line."""
    w = np.ones_like(x)
    slope = 0.0
    rounding = 1e-12 * (1 + np.abs(y).max())
    for _ in range(20):
        dx = x - np.average(x, weights=w)
        dy = y - np.average(y, weights=w)
        square = np.sum(w * dx**2)
        slope = np.sum(w * dx * dy) / max(square, 1e-300)
        residual = np.abs(dy - slope * dx)
        spread = np.median(residual) / 0.6745
        scale = huber * max(spread, rounding)
        w = np.minimum(1.0, scale / np.maximum(residual, 1e-300))
    return float(slope)


def _longest_run(choices: list[int]) -> int:
    """Position in the middle of the longest run of equal values (the first of equally long ones)."""
    best, longest = 0, 0
    start = 0
    for _, run in groupby(choices):
        length = len(list(run))
        if length > longest:
            best, longest = start, length
        start += length
    return best + longest // 2


def example(generator: torch.Generator) -> dict[str, Any]:
    """Likelihoods that rise steeply up to three components and slowly after."""
    k = np.arange(1, 11)
    steep = 300 * np.minimum(k, 3)
    slow = 2.0 * 3 * k
    return {
        "log_likelihoods": -400.0 + steep + slow,
        "dimensions": 3 * k - 1,
    }
