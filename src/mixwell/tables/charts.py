"""Charts of a fit that `report` does not have: ellipses, and histograms with a line over them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from mixwell.report.axes import Axes, framed
from mixwell.tables.kinds import resolution

BINS = 24

_HISTOGRAM = Markup('<path class="columns" d="{}"/><polyline class="s1" points="{}" data-name="model"/>')


def ellipse(mean_2: np.ndarray, scale_22: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (x, y) at Mahalanobis distance `radius`."""
    values, vectors = np.linalg.eigh(scale_22)
    angle = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    positive = np.maximum(values, 0)
    half_axes = np.sqrt(positive)[:, None]  # of the ellipse at distance 1
    turned = vectors @ (circle * half_axes * radius)
    x, y = mean_2[:, None] + turned
    return x, y


def histogram(data: np.ndarray, drawn: np.ndarray, *, label: str) -> Markup:
    """Shares of the data as bars and of the draws as a line, in the same bins."""
    edges = _edges(data)
    shares = _shares(data, edges)
    line = _shares(drawn, edges)
    highest = float(max(shares.max(), line.max()))
    x_range = (float(edges[0]), float(edges[-1]))
    axes = Axes(x_range, (0.0, 1.06 * highest))
    bars, points = [], []
    for i, (low, high) in enumerate(pairwise(edges)):
        if shares[i] > 0:
            bars.append(_bar(low, high, shares[i], axes))
        middle = axes.across((low + high) / 2)
        down = axes.down(line[i])
        points.append(f"{middle:.1f},{down:.1f}")
    columns = _HISTOGRAM.format("".join(bars), " ".join(points))
    alt = f"share of rows against {label}"
    return framed(columns, axes, x_label=label, y_label="", alt=alt, form="chart small", count=4)


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(values, edges)
    return counts / len(values)


def _bar(low: float, high: float, share: float, axes: Axes) -> str:
    left = axes.across(low)
    right = axes.across(high)
    top = axes.down(share)
    return f"M{left:.0f} 1000V{top:.0f}H{right:.0f}V1000Z"


def _edges(data: np.ndarray) -> np.ndarray:
    """Bins as wide as a whole number of the data's steps, so that no bin gets more of them than another."""
    low = float(data.min())
    high = float(data.max())
    if not high > low:
        return np.array([low - 0.5, low + 0.5])
    step = resolution(data)
    span = high - low
    if not step or span / step > 50 * BINS:
        return np.linspace(low, high, BINS + 1)
    reach = span + step
    steps = math.ceil(reach / step / BINS - 1e-6)
    width = step * steps
    first = low - step / 2
    last = high + width
    return np.arange(first, last, width)
