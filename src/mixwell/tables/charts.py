"""Charts of a fit that `report.plots` does not have: scatter with ellipses, and histograms with a line over them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from mixwell.report import plots
from mixwell.report.plots import _labels, _padded, _scale
from mixwell.tables.columns import resolution

MOST_POINTS = 1500  # more dots than this hide each other
BINS = 24
Cloud = tuple[np.ndarray, np.ndarray, int]  # x, y, colour slot


def limits(*values: np.ndarray) -> tuple[float, float]:
    """A padded range of all finite values."""
    every = np.concatenate(values)
    every = every[np.isfinite(every)]
    return _padded([float(every.min()), float(every.max())])


def scatter(clouds: Sequence[Cloud], ellipses: Sequence[Cloud], *, x_label: str, y_label: str,
            x_range: tuple[float, float], y_range: tuple[float, float]) -> Markup:
    """Dots, and closed lines over them."""
    across, up = _scale(*x_range, 1000), _scale(*y_range, 1000)

    def place(x: float, y: float) -> str:
        return f"{across(x):.0f} {1000 - up(y):.0f}"

    stride = max(1, math.ceil(sum(len(x) for x, _, _ in clouds) / MOST_POINTS))
    drawn = [Markup('<path class="points s{}" d="{}"/>').format(
        slot, "".join(f"M{place(a, b)}h0" for a, b in zip(x[::stride], y[::stride]))) for x, y, slot in clouds]
    drawn += [Markup('<path class="ellipse s{}" d="M{}Z"/>').format(
        slot, "L".join(place(a, b) for a, b in zip(x, y))) for x, y, slot in ellipses]
    return _framed(Markup("").join(drawn), x_range, y_range, x_label, y_label, "scatter")


def ellipse(mean_2: np.ndarray, scale_22: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (x, y) at Mahalanobis distance `radius`."""
    values, vectors = np.linalg.eigh(scale_22)
    angle = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)]) * np.sqrt(np.maximum(values, 0))[:, None] * radius
    x, y = mean_2[:, None] + vectors @ circle
    return x, y


def histogram(data: np.ndarray, drawn: np.ndarray, *, label: str) -> Markup:
    """Shares of the data as bars and of the draws as a line, in the same bins."""
    edges = _edges(data)
    share, line = (np.histogram(v, edges)[0] / len(v) for v in (data, drawn))
    x_range = float(edges[0]), float(edges[-1])
    y_range = 0.0, 1.06 * float(max(share.max(), line.max()))
    across, up = _scale(*x_range, 1000), _scale(*y_range, 1000)
    bars = "".join(f"M{across(a):.0f} 1000V{1000 - up(s):.0f}H{across(b):.0f}V1000Z"
                   for a, b, s in zip(edges[:-1], edges[1:], share) if s > 0)
    points = " ".join(f"{across((a + b) / 2):.1f},{1000 - up(s):.1f}" for a, b, s in zip(edges[:-1], edges[1:], line))
    drawn_svg = Markup('<path class="columns" d="{}"/><polyline class="s1" points="{}" data-name="model"/>').format(
        bars, points)
    return _framed(drawn_svg, x_range, y_range, label, "", "small", count=4)


def _edges(data: np.ndarray) -> np.ndarray:
    """Bins as wide as a whole number of the data's steps, so that no bin gets more of them than another."""
    low, high, step = float(data.min()), float(data.max()), resolution(data)
    if not high > low:
        return np.array([low - 0.5, low + 0.5])
    if step and (high - low) / step <= 50 * BINS:
        width = step * math.ceil((high - low + step) / step / BINS - 1e-6)
        return np.arange(low - step / 2, high + width, width)
    return np.linspace(low, high, BINS + 1)


def _framed(drawn: Markup, x_range: tuple[float, float], y_range: tuple[float, float], x_label: str, y_label: str,
            form: str, count: int = 5) -> Markup:
    across, up = _scale(*x_range, 1000), _scale(*y_range, 1000)
    x_ticks, y_ticks = plots.ticks(*x_range, count), plots.ticks(*y_range, count)
    grid = "".join(f"M0 {1000 - up(y):.1f}H1000" for y in y_ticks)
    return Markup(
        '<figure class="chart {form}"><div class="y-label">{y_label}</div><div class="frame" data-x0="{x0}" '
        'data-x1="{x1}" data-y0="{y0}" data-y1="{y1}" data-x="{x_label}"><div class="y-ticks">{ys}</div>'
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{alt}">'
        '<path class="grid" d="{grid}"/>{drawn}</svg><div class="x-ticks">{xs}</div></div>'
        '<div class="x-label">{x_label}</div></figure>'
    ).format(form=form, x_label=x_label, y_label=y_label, alt=f"{y_label or 'share of rows'} against {x_label}",
             x0=x_range[0], x1=x_range[1], y0=y_range[0], y1=y_range[1], grid=grid, drawn=drawn,
             ys=_labels(y_ticks, up, "bottom"), xs=_labels(x_ticks, across, "left"))
