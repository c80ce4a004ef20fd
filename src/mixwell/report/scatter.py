"""Scatter plots: dots, closed lines and open ones over them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from mixwell.report.axes import Axes, Range, framed, padded
from mixwell.report.plots import NUM_SLOTS

MOST_POINTS = 1500  # more dots than this hide each other
Cloud = tuple[np.ndarray, np.ndarray, int]  # x, y, colour slot

_POINTS = Markup('<path class="points s{}" d="{}"/>')
_ELLIPSE = Markup('<path class="ellipse s{}" d="M{}Z"/>')
_OPEN = Markup('<path class="mark s{}" d="M{}"/>')


def limits(*values: np.ndarray) -> Range:
    """A padded range of all finite values."""
    every = np.concatenate(values)
    finite = every[np.isfinite(every)]
    low = float(finite.min())
    high = float(finite.max())
    return padded([low, high])


def scatter(clouds: Sequence[Cloud], ellipses: Sequence[Cloud] = (), *, x_label: str, y_label: str, x_range: Range,
            y_range: Range, lines: Sequence[Cloud] = (), form: str = "chart scatter") -> Markup:
    """Dots, and closed lines and open ones over them. form: classes in the style sheet."""
    axes = Axes(x_range, y_range)
    count = sum(len(x) for x, _, _ in clouds)
    stride = max(1, math.ceil(count / MOST_POINTS))
    drawn = []
    for x, y, slot in clouds:
        drawn.append(dots(x[::stride], y[::stride], slot, axes))
    for x, y, slot in ellipses:
        line = "L".join(_places(x, y, axes))
        drawn.append(_ELLIPSE.format(slot, line))
    for x, y, slot in lines:
        line = "L".join(_places(x, y, axes))
        drawn.append(_OPEN.format(slot, line))
    return framed(Markup("").join(drawn), axes, x_label=x_label, y_label=y_label, form=form)


def dots(x: np.ndarray, y: np.ndarray, slot: int, axes: Axes) -> Markup:
    """A dot for each point."""
    places = _places(x, y, axes)
    marks = [f"M{place}h0" for place in places]
    return _POINTS.format(slot, "".join(marks))


def agreement(told: np.ndarray, seen: np.ndarray, *, x_label: str, y_label: str, slot: int = 0,
              form: str = "chart small") -> Markup:
    """Dots of what was seen over what was told, around the line on which both are the same."""
    ends = limits(told, seen)
    diagonal = np.array(ends)
    return scatter([(told, seen, slot)], lines=[(diagonal, diagonal, NUM_SLOTS)], x_label=x_label, y_label=y_label,
                   x_range=ends, y_range=ends, form=form)


def _places(x: np.ndarray, y: np.ndarray, axes: Axes) -> list[str]:
    """Points as SVG names them, to the nearest thousandth of the frame."""
    places = []
    for a, b in zip(x, y):
        left = axes.across(a)
        down = axes.down(b)
        places.append(f"{left:.0f} {down:.0f}")
    return places
