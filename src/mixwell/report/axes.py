"""Axes of charts: round ticks, padded ranges, and the frame with labels into which a chart draws.

A frame is a thousand units wide and high, and stretches to whatever room a page gives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mixwell.core import units

FRAME = 1000
Range = tuple[float, float]  # low, high

_FRAMED = Markup(
    '<figure class="{form}">{legend}<div class="y-label">{y_label}</div>'
    '<div class="frame" data-x0="{x0}" data-x1="{x1}" data-y0="{y0}" data-y1="{y1}" data-x="{x_label}">'
    '<div class="y-ticks">{y_ticks}</div><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
    'aria-label="{alt}"><path class="grid" d="{grid}"/>{drawn}</svg>'
    '<div class="x-ticks">{x_ticks}</div></div><div class="x-label">{x_label}</div></figure>')
_TICK = Markup('<span style="{}:{:.2f}%">{}</span>')


@dataclass(frozen=True)
class Axes:
    """The ranges of a frame, and where in it a value stands."""

    x: Range
    y: Range

    def across(self, x: float) -> float:
        """Distance from the left edge, 0 to 1000."""
        return scale(self.x)(x)

    def up(self, y: float) -> float:
        """Distance from the lower edge, 0 to 1000."""
        return scale(self.y)(y)

    def down(self, y: float) -> float:
        """Distance from the upper edge, 0 to 1000, as SVG counts."""
        return FRAME - self.up(y)


def scale(ends: Range) -> Callable[[float], float]:
    """A function from a value to its place between the ends, 0 to 1000."""
    low, high = ends
    return lambda value: FRAME * (value - low) / (high - low)


def span(values: Sequence[float]) -> Range:
    """Least and largest of the values; half a unit to each side of equal ones."""
    low, high = min(values), max(values)
    if high > low:
        return low, high
    return low - 0.5, high + 0.5


def padded(values: Sequence[float]) -> Range:
    """The span with a twentieth more at each end, so that no point lies on the edge."""
    low, high = span(values)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    if not high > low:
        return [low]
    least = (high - low) / max(count, 1)
    step = _round_step(least)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _round_step(least: float) -> float:
    """The next round number from `least` on."""
    exponent = math.floor(math.log10(least))
    power = 10.0**exponent
    limit = least * 0.999
    for step in (power, 2 * power, 5 * power):
        if step >= limit:
            return step
    return 10 * power


def tick_labels(values: Sequence[float], place: Callable[[float], float], side: str) -> Markup:
    """Labels of the ticks, each at `place(value)` thousandths of the frame from its `side`."""
    labels = []
    for value in values:
        label = _TICK.format(side, place(value) / 10, _tick(value, values))
        labels.append(label)
    return Markup("").join(labels)


def _tick(value: float, values: Sequence[float]) -> str:
    """Tick labels share their decimals, so that 2.5 and 3.0 line up; large ones take an SI prefix instead."""
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(value)
    if 0 < step < 1e-3:
        return units.number(value)
    if max(map(abs, values)) < 1000:
        return units.fixed(value, _decimals(step))
    return units.tick(value) if step else units.number(value)


def _decimals(step: float) -> int:
    """How many decimals tell neighbours a `step` apart from each other."""
    if not step:
        return 0
    exponent = math.log10(step) + 1e-9
    return max(0, -math.floor(exponent))


def framed(drawn: Markup, axes: Axes, *, x_label: str, y_label: str, alt: str = "", form: str = "chart",
           legend: str = "", count: int = 5) -> Markup:
    """A chart: its frame with about `count` ticks on each axis, and in it what is `drawn` as SVG.

    alt: what the chart shows, for those who cannot see it. form: its classes in the style sheet.
    """
    x_ticks = ticks(*axes.x, count)
    y_ticks = ticks(*axes.y, count)
    lines = [f"M0 {axes.down(y):.1f}H1000" for y in y_ticks]
    return _FRAMED.format(
        form=form, legend=legend, drawn=drawn, grid="".join(lines),
        x_label=x_label, x0=axes.x[0], x1=axes.x[1],
        y_label=y_label, y0=axes.y[0], y1=axes.y[1],
        x_ticks=tick_labels(x_ticks, axes.across, "left"),
        y_ticks=tick_labels(y_ticks, axes.up, "bottom"),
        alt=alt or f"{y_label} against {x_label}")
