"""Charts as HTML fragments: lines, dots, bars, heat maps and the lanes of a lineage.

Pure functions from plain data to `Markup`, styled by `templates/page.html` alone. Geometry is drawn as SVG that
stretches to its frame and every label is ordinary HTML text, so that a chart is as readable on a telephone and on
paper as on a wide screen, follows light and dark, and needs no library, no font and no network. Colours are slots:
`s0` to `s7`, the same name the same slot through one page (`slots`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mixwell.core import units
from mixwell.report.axes import Axes, Range, framed, padded, scale, span, tick_labels, ticks

MAX_POINTS = 400  # more points of a line than this cannot be told apart on a screen
NUM_SLOTS = 8
Form = Callable[[float], str]  # a value as text
Point = tuple[float, float]

_LEGEND = Markup('<ul class="legend">{}</ul>')
_LEGEND_ENTRY = Markup('<li class="s{}">{}</li>')
_LINE = Markup('<polyline class="s{}{}" points="{}" data-name="{}"><title>{}</title></polyline>')
_BAND = Markup('<polygon class="band s{}" points="{}"/>')
_DOTS = Markup('<figure class="dots">{}{}<div class="dot-row"><span class="name"></span>'
               '<div class="x-ticks">{}</div></div><div class="x-label">{}</div></figure>')
_DOT_ROW = Markup('<div class="dot-row"><span class="name">{}</span>'
                  '<span class="track" style="height:{:.2f}rem">{}</span></div>')
_DOT = Markup('<i class="s{}" style="left:{:.2f}%;top:{:.0f}%" title="{}: {}"></i>')
_BARS = Markup('<figure class="bars">{}{}</figure>')
_BAR_ROW = Markup('<div class="bar-row"><span class="name">{}</span><div>{}</div></div>')
_BAR = Markup('<div class="bar s{}" title="{}: {}"><i style="width:{:.2f}%"></i><b>{}</b></div>')
_HEAT = Markup('<div class="scroll"><table class="heat{}"><thead><tr><th>{}</th>{}</tr></thead><tbody>{}</tbody>'
               '</table></div>')
_HEAT_HEAD = Markup('<th scope="col">{}</th>')
_HEAT_HEAD_BESIDE = Markup('<th scope="col" class="beside">{}</th>')
_HEAT_ROW = Markup('<tr><th scope="row">{}</th>{}</tr>')
_HEAT_CELL = Markup('<td class="{}" style="--depth:{:.3f}" title="{}: {}">{}</td>')
_HEAT_ABSENT = Markup('<td title="{}">{}</td>')
_HEAT_BESIDE = Markup('<td class="beside">{}</td>')
_LANES = Markup('<div class="lanes"><svg width="{w}" height="{h}" viewBox="0 0 {w} {h}" aria-hidden="true">'
                '{edges}{dots}</svg><ol>{rows}</ol></div>')
_LANE_DOT = Markup('<circle class="s{}" cx="{}" cy="{}" r="6"/>')
_LANE_EDGE = Markup('<path class="s{slot}" d="M{x0} {y0}V{y1}"/>')
_LANE_BEND = Markup('<path class="s{slot}" d="M{x0} {y0}C{x0} {leave} {x1} {arrive} {x1} {end}V{y1}"/>')
_LANE_ROW = Markup("<li><b>{}</b><span>{}</span></li>")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: points (x, y), of which those that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    slot: int = 0
    faint: bool = False  # raw measurements behind their smooth line: thin, without legend or read-out
    band: tuple[Sequence[float], Sequence[float]] = ((), ())  # lower and upper edge around the line, one value each x


@dataclass(frozen=True, kw_only=True)
class Node:
    """One row of `lanes`; `parent` names an earlier row, or is empty for a root."""

    name: str
    title: str
    detail: str = ""
    parent: str = ""
    slot: int = 0


def slots(names: Sequence[str]) -> dict[str, int]:
    """A colour slot for each name, in order, round again after the last."""
    once = dict.fromkeys(names)
    return {name: i % NUM_SLOTS for i, name in enumerate(once)}


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Moving average over `window` values, centred; narrower at the steep beginning, one-sided at the flat end."""
    half = max(window, 1) // 2
    result = []
    for i in range(len(values)):
        reach = min(half, i)
        part = values[i - reach:i + reach + 1]
        result.append(math.fsum(part) / len(part))
    return result


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, y_range: Range | None = None) -> Markup:
    """Lines over a common x axis. `y_range` cuts what lies outside. Without a finite point the result is empty."""
    lines = [(s, points) for s in series if (points := _finite(s))]
    if not lines:
        return Markup("")
    axes = _axes([points for _, points in lines], y_range)
    bold = [s for s, _ in lines if not s.faint]
    legend = _legend([(s.name, s.slot) for s in bold])
    return framed(_joined(drawn(series, axes)), axes, x_label=x_label, y_label=y_label, legend=legend)


def drawn(series: Sequence[Series], axes: Axes) -> list[Markup]:
    """Bands and lines inside a frame."""
    bands, lines = [], []
    for one in series:
        points = _finite(one)
        if points:
            bands.append(_band(one, axes))
            lines.append(_polyline(one, points, axes))
    return bands + lines  # bands below all lines


def _axes(lines: Sequence[Sequence[Point]], y_range: Range | None) -> Axes:
    """Axes that hold every point, or cut them to `y_range`."""
    every = [point for points in lines for point in points]
    across = [x for x, _ in every]
    up = [y for _, y in every]
    return Axes(span(across), y_range or padded(up))


def dot_chart(groups: Sequence[str], series: Mapping[str, Sequence[float | None]], *, label: str,
              colors: Mapping[str, int] | None = None, decimals: int = 3) -> Markup:
    """One row a group, one dot a series, on a common axis that need not begin at zero; empty without a value."""
    colors = colors or slots(list(series))
    values = _values(series)
    if not values:
        return Markup("")
    ends = padded(values)
    across = scale(ends)
    height = 0.6 + 0.5 * len(series)
    rows = []
    for i, group in enumerate(groups):
        own = {name: line[i] for name, line in series.items()}
        dots = _dots(own, colors, across, decimals)
        rows.append(_DOT_ROW.format(group, height, dots))
    legend = _legend([(name, colors[name]) for name in series])
    labels = tick_labels(ticks(*ends), across, "left")
    return _DOTS.format(legend, _joined(rows), labels, label)


def bar_chart(groups: Sequence[str], series: Mapping[str, Sequence[float | None]], *,
              form: Form = units.number, colors: Mapping[str, int] | None = None) -> Markup:
    """Bars from zero, grouped: one bar a series in each group, each with its value; missing values have no bar.

    Without any value the result is empty; one below zero raises `ValueError`.
    """
    colors = colors or slots(list(series))
    values = _values(series)
    if not values:
        return Markup("")
    if min(values) < 0:
        raise ValueError(f"bars begin at zero, got {min(values)}; use dot_chart for values below zero")
    top = max(values) or 1.0
    rows = []
    for i, group in enumerate(groups):
        bars = [_bar(name, line[i], top, colors[name], form) for name, line in series.items()]
        rows.append(_BAR_ROW.format(group, _joined(bars)))
    entries = [(name, colors[name]) for name in series]
    legend = _legend(entries) if len(entries) > 1 else ""
    return _BARS.format(legend, _joined(rows))


def heat_map(values: Sequence[Sequence[float]], *, rows: Sequence[str], columns: Sequence[str], low: float,
             center: float, high: float, corner: str = "", form: Form = units.number,
             beside: Mapping[str, Sequence[str]] | None = None) -> Markup:
    """A table coloured from `low` (cold) over `center` (plain) to `high` (hot); beyond them the colour stays full.

    `beside` adds plain columns at the right, one text a row. Up to sixteen coloured columns the numbers stand in the
    cells, beyond that only in their hover titles. Stops that do not rise raise `ValueError`.
    """
    if not low <= center <= high or low == high:
        raise ValueError(f"expected low <= center <= high, not all equal, got {low}, {center}, {high}")
    stops = (low, center, high)
    wide = len(columns) > 16
    beside = beside or {}
    heads = [_HEAT_HEAD.format(name) for name in columns]
    heads += [_HEAT_HEAD_BESIDE.format(name) for name in beside]
    body = []
    for i, row in enumerate(rows):
        cells = []
        for value, column in zip(values[i], columns):
            name = f"{corner} {row}, {column}".strip()
            cells.append(_cell(value, name, wide, stops, form))
        for texts in beside.values():
            cells.append(_HEAT_BESIDE.format(texts[i]))
        body.append(_HEAT_ROW.format(row, _joined(cells)))
    width = " wide" if wide else ""
    return _HEAT.format(width, corner, _joined(heads), _joined(body))


def lanes(nodes: Sequence[Node]) -> Markup:
    """Rows from first to last, rails at the left: a first child goes on in its parent's lane, others branch off."""
    lane = _assign_lanes(nodes)
    height, step = 56, 22
    width = step * (max(lane.values(), default=0) + 1)
    place: dict[str, tuple[int, int]] = {}
    edges, dots, rows = [], [], []
    for i, node in enumerate(nodes):
        own = (11 + step * lane[node.name], height * i + 18)
        if node.parent in place:
            edges.append(_edge(place[node.parent], own, node.slot))
        place[node.name] = own
        dots.append(_LANE_DOT.format(node.slot, *own))
        rows.append(_LANE_ROW.format(node.title, node.detail))
    return _LANES.format(
        w=width, h=height * len(nodes),
        edges=_joined(edges), dots=_joined(dots), rows=_joined(rows))


def _assign_lanes(nodes: Sequence[Node]) -> dict[str, int]:
    lane: dict[str, int] = {}
    followed: set[str] = set()
    for node in nodes:
        goes_on = node.parent in lane and node.parent not in followed
        free = max(lane.values(), default=-1) + 1
        lane[node.name] = lane[node.parent] if goes_on else free
        followed.add(node.parent)
    return lane


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _values(series: Mapping[str, Sequence[float | None]]) -> list[float]:
    """The finite values of all series together."""
    found = []
    for line in series.values():
        found += [float(v) for v in line if units.is_number(v)]
    return found


def _numeric(points: Iterable[Point]) -> list[Point]:
    """The points of which both coordinates are finite."""
    found = []
    for x, y in points:
        if units.is_number(x) and units.is_number(y):
            found.append((x, y))
    return found


def _finite(series: Series) -> list[Point]:
    """The finite points, thinned to `MAX_POINTS` with the last one kept."""
    points = _numeric(zip(series.x, series.y))
    stride = math.ceil(len(points) / MAX_POINTS)
    if stride <= 1:
        return points
    backwards = points[::-1][::stride]  # from the last one, so that it stays
    return backwards[::-1]


def _path(points: Iterable[Point], axes: Axes) -> str:
    places = []
    for x, y in points:
        left = axes.across(x)
        down = axes.down(y)
        places.append(f"{left:.1f},{down:.1f}")
    return " ".join(places)


def _polyline(series: Series, points: Sequence[Point], axes: Axes) -> Markup:
    path = _path(points, axes)
    if len(points) == 1:  # a polyline of one point draws nothing; a round cap on a line of no length is a dot
        path = f"{path} {path}"
    weight = " faint" if series.faint else " line"
    return _LINE.format(series.slot, weight, path, series.name, series.name)


def _band(series: Series, axes: Axes) -> Markup:
    """The area between the edges; nothing for a line without them."""
    low, high = series.band
    there = list(zip(series.x, low))
    back = list(zip(series.x, high))[::-1]
    edges = _numeric([*there, *back])
    if not edges:
        return Markup("")
    return _BAND.format(series.slot, _path(edges, axes))


def _legend(entries: Sequence[tuple[str, int]]) -> Markup:
    once = dict.fromkeys(entries)
    items = [_LEGEND_ENTRY.format(slot, name) for name, slot in once]
    return _LEGEND.format(_joined(items))


def _dots(values: Mapping[str, float | None], colors: Mapping[str, int], across: Callable[[float], float],
          decimals: int) -> Markup:
    """The dots of a row, each series a little below the one before, so that equal values hide nothing."""
    dots = []
    for k, (name, value) in enumerate(values.items()):
        if not units.is_number(value):
            continue
        left = across(value) / 10
        down = (k + 1) / (len(values) + 1)
        text = units.fixed(value, decimals)
        dot = _DOT.format(colors[name], left, 100 * down, name, text)
        dots.append(dot)
    return _joined(dots)


def _bar(name: str, value: float | None, top: float, slot: int, form: Form) -> Markup:
    if not units.is_number(value):
        return Markup("")
    text = form(value)
    width = 100 * value / top
    return _BAR.format(slot, name, text, width, text)


def _cell(value: float, name: str, wide: bool, stops: tuple[float, float, float], form: Form) -> Markup:
    if not units.is_number(value):
        return _HEAT_ABSENT.format(name, "" if wide else units.ABSENT)
    low, center, high = stops
    side, end = ("hot", high) if value >= center else ("cold", low)
    reach = abs(end - center)
    distance = abs(value - center)
    depth = min(distance / reach, 1.0) if reach > 0 else 0.0
    text = form(value)
    shown = "" if wide else text
    return _HEAT_CELL.format(side, depth, name, text, shown)


def _edge(start: tuple[int, int], end: tuple[int, int], slot: int) -> Markup:
    """Straight down within a lane; into another one by a bend below the parent."""
    (x0, y0), (x1, y1) = start, end
    if x0 == x1:
        return _LANE_EDGE.format(slot=slot, x0=x0, y0=y0, y1=y1)
    bend = {"leave": y0 + 30, "arrive": y0 + 10, "end": y0 + 44}
    return _LANE_BEND.format(slot=slot, x0=x0, y0=y0, x1=x1, y1=y1, **bend)
