"""Charts of a fit that `report.plots` does not have: scatter with ellipses, and histograms with a line over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from mixwell.report.axes import Axes, Range, framed, padded
from mixwell.tables.kinds import resolution

MOST_POINTS = 1500  # more dots than this hide each other
BINS = 24
Cloud = tuple[np.ndarray, np.ndarray, int]  # x, y, colour slot

_POINTS = Markup('<path class="points s{}" d="{}"/>')
_ELLIPSE = Markup('<path class="ellipse s{}" d="M{}Z"/>')
_HISTOGRAM = Markup('<path class="columns" d="{}"/><polyline class="s1" points="{}" data-name="model"/>')


def limits(*values: np.ndarray) -> Range:
    """A padded range of all finite values."""
    every = np.concatenate(values)
    finite = every[np.isfinite(every)]
    low = float(finite.min())
    high = float(finite.max())
    return padded([low, high])


def scatter(clouds: Sequence[Cloud], ellipses: Sequence[Cloud], *, x_label: str, y_label: str, x_range: Range,
            y_range: Range) -> Markup:
    """Dots, and closed lines over them."""
    axes = Axes(x_range, y_range)
    count = sum(len(x) for x, _, _ in clouds)
    stride = max(1, math.ceil(count / MOST_POINTS))
    drawn = []
    for x, y, slot in clouds:
        places = _places(x[::stride], y[::stride], axes)
        dots = [f"M{place}h0" for place in places]
        drawn.append(_POINTS.format(slot, "".join(dots)))
    for x, y, slot in ellipses:
        line = "L".join(_places(x, y, axes))
        drawn.append(_ELLIPSE.format(slot, line))
    return framed(Markup("").join(drawn), axes, x_label=x_label, y_label=y_label, form="chart scatter")


def _places(x: np.ndarray, y: np.ndarray, axes: Axes) -> list[str]:
    """Points as SVG names them, to the nearest thousandth of the frame."""
    places = []
    for a, b in zip(x, y):
        left = axes.across(a)
        down = axes.down(b)
        places.append(f"{left:.0f} {down:.0f}")
    return places


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
