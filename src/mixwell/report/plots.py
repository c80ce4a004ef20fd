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

MAX_POINTS = 400  # more points of a line than this cannot be told apart on a screen
NUM_SLOTS = 8


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
    return {name: i % NUM_SLOTS for i, name in enumerate(dict.fromkeys(names))}


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Moving average over `window` values, centred; narrower at the steep beginning, one-sided at the flat end."""
    half, result = max(window, 1) // 2, []
    for i in range(len(values)):
        reach = min(half, i)
        part = values[i - reach:i + reach + 1]
        result.append(math.fsum(part) / len(part))
    return result


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str,
               y_range: tuple[float, float] | None = None) -> Markup:
    """Lines over a common x axis. `y_range` cuts what lies outside. Without a finite point the result is empty."""
    lines = [(s, points) for s in series if (points := _finite(s))]
    if not lines:
        return Markup("")
    x_low, x_high = _span([x for _, points in lines for x, _ in points])
    y_low, y_high = y_range or _padded([y for _, points in lines for _, y in points])
    across, up = _scale(x_low, x_high, 1000), _scale(y_low, y_high, 1000)
    x_ticks, y_ticks = ticks(x_low, x_high), ticks(y_low, y_high)
    return Markup(
        '<figure class="chart">{legend}<div class="y-label">{y_label}</div>'
        '<div class="frame" data-x0="{x0}" data-x1="{x1}" data-y0="{y0}" data-y1="{y1}" data-x="{x_label}">'
        '<div class="y-ticks">{ys}</div><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        'aria-label="{y_label} against {x_label}"><path class="grid" d="{grid}"/>{drawn}</svg>'
        '<div class="x-ticks">{xs}</div></div><div class="x-label">{x_label}</div></figure>'
    ).format(legend=_legend([(s.name, s.slot) for s, _ in lines if not s.faint]), x_label=x_label, y_label=y_label,
             x0=x_low, x1=x_high, y0=y_low, y1=y_high, grid="".join(f"M0 {1000 - up(y):.1f}H1000" for y in y_ticks),
             drawn=_joined([_band(s, across, up) for s, _ in lines]
                           + [_polyline(s, points, across, up) for s, points in lines]),
             ys=_labels(y_ticks, up, "bottom"), xs=_labels(x_ticks, across, "left"))


def dot_chart(groups: Sequence[str], series: Mapping[str, Sequence[float | None]], *, label: str,
              colors: Mapping[str, int] | None = None, decimals: int = 3) -> Markup:
    """One row a group, one dot a series, on a common axis that need not begin at zero."""
    colors = colors or slots(list(series))
    values = _values(series)
    if not values:
        return Markup("")
    low, high = _padded(values)
    across = _scale(low, high, 1000)
    row = Markup('<div class="dot-row"><span class="name">{}</span>'
                 '<span class="track" style="height:{:.2f}rem">{}</span></div>')
    rows = _joined(row.format(group, 0.6 + 0.5 * len(series), _joined(
        _dot(name, line[i], colors[name], across, (k + 1) / (len(series) + 1), decimals)
        for k, (name, line) in enumerate(series.items()))) for i, group in enumerate(groups))
    return Markup('<figure class="dots">{}{}<div class="dot-row"><span class="name"></span>'
                  '<div class="x-ticks">{}</div></div><div class="x-label">{}</div></figure>').format(
        _legend([(name, colors[name]) for name in series]), rows, _labels(ticks(low, high), across, "left"), label)


def bar_chart(groups: Sequence[str], series: Mapping[str, Sequence[float | None]], *,
              form: Callable[[float], str] = units.number, colors: Mapping[str, int] | None = None) -> Markup:
    """Bars from zero, grouped: one bar a series in each group, each with its value; missing values have no bar."""
    colors = colors or slots(list(series))
    values = _values(series)
    if not values:
        return Markup("")
    if min(values) < 0:
        raise ValueError(f"bars begin at zero, got {min(values)}; use dot_chart for values below zero")
    rows = _joined(Markup('<div class="bar-row"><span class="name">{}</span><div>{}</div></div>').format(
        group, _joined(_bar(name, line[i], max(values) or 1.0, colors[name], form) for name, line in series.items()))
        for i, group in enumerate(groups))
    legend = _legend([(name, colors[name]) for name in series]) if len(series) > 1 else Markup("")
    return Markup('<figure class="bars">{}{}</figure>').format(legend, rows)


def heat_map(values: Sequence[Sequence[float]], *, rows: Sequence[str], columns: Sequence[str], low: float,
             center: float, high: float, corner: str = "", form: Callable[[float], str] = units.number,
             beside: Mapping[str, Sequence[str]] | None = None) -> Markup:
    """A table coloured from `low` (cold) over `center` (plain) to `high` (hot); beyond them the colour stays full.

    `beside` adds plain columns at the right, one text a row. Up to sixteen coloured columns the numbers stand in the
    cells, beyond that only in their hover titles.
    """
    if not low <= center <= high or low == high:
        raise ValueError(f"expected low <= center <= high, not all equal, got {low}, {center}, {high}")
    wide, beside = len(columns) > 16, beside or {}
    head = _joined(Markup('<th scope="col">{}</th>').format(c) for c in columns)
    head += _joined(Markup('<th scope="col" class="beside">{}</th>').format(c) for c in beside)
    body = []
    for i, (row, line) in enumerate(zip(rows, values)):
        cells = [_cell(value, f"{corner} {row}, {column}".strip(), wide, (low, center, high), form)
                 for column, value in zip(columns, line)]
        cells += [Markup('<td class="beside">{}</td>').format(column[i]) for column in beside.values()]
        body.append(Markup('<tr><th scope="row">{}</th>{}</tr>').format(row, Markup("").join(cells)))
    return Markup('<div class="scroll"><table class="heat{}"><thead><tr><th>{}</th>{}</tr></thead><tbody>{}</tbody>'
                  '</table></div>').format(" wide" if wide else "", corner, head, Markup("").join(body))


def lanes(nodes: Sequence[Node]) -> Markup:
    """Rows from first to last, rails at the left: a first child goes on in its parent's lane, others branch off."""
    lane = _assign_lanes(nodes)
    height, step = 56, 22
    width = step * (max(lane.values(), default=0) + 1)
    place = {node.name: (11 + step * lane[node.name], height * i + 18) for i, node in enumerate(nodes)}
    edges = _joined(_edge(place[n.parent], place[n.name], n.slot) for n in nodes if n.parent in place)
    dots = _joined(Markup('<circle class="s{}" cx="{}" cy="{}" r="6"/>').format(n.slot, *place[n.name]) for n in nodes)
    rows = _joined(Markup("<li><b>{}</b><span>{}</span></li>").format(n.title, n.detail) for n in nodes)
    return Markup('<div class="lanes"><svg width="{w}" height="{h}" viewBox="0 0 {w} {h}" aria-hidden="true">'
                  '{edges}{dots}</svg><ol>{rows}</ol></div>').format(w=width, h=height * len(nodes), edges=edges,
                                                                     dots=dots, rows=rows)


def _assign_lanes(nodes: Sequence[Node]) -> dict[str, int]:
    lane: dict[str, int] = {}
    followed: set[str] = set()
    for node in nodes:
        goes_on = node.parent in lane and node.parent not in followed
        lane[node.name] = lane[node.parent] if goes_on else max(lane.values(), default=-1) + 1
        followed.add(node.parent)
    return lane


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _values(series: Mapping[str, Sequence[float | None]]) -> list[float]:
    return [float(v) for line in series.values() for v in line if units.is_number(v)]


def _finite(series: Series) -> list[tuple[float, float]]:
    """The finite points, thinned to `MAX_POINTS` with the last one kept."""
    points = [(x, y) for x, y in zip(series.x, series.y) if units.is_number(x) and units.is_number(y)]
    stride = math.ceil(len(points) / MAX_POINTS)
    return points[::-1][::stride][::-1] if stride > 1 else points


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = _span(values)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _scale(low: float, high: float, length: float) -> Callable[[float], float]:
    return lambda value: length * (value - low) / (high - low)


def _polyline(series: Series, points: Sequence[tuple[float, float]], across: Callable[[float], float],
              up: Callable[[float], float]) -> Markup:
    path = " ".join(f"{across(x):.1f},{1000 - up(y):.1f}" for x, y in points)
    if len(points) == 1:  # a polyline of one point draws nothing; a round cap on a line of no length is a dot
        path = f"{path} {path}"
    return Markup('<polyline class="s{}{}" points="{}" data-name="{}"><title>{}</title></polyline>').format(
        series.slot, " faint" if series.faint else " line", path, series.name, series.name)


def _band(series: Series, across: Callable[[float], float], up: Callable[[float], float]) -> Markup:
    """The area between the edges; nothing for a line without them."""
    low, high = series.band
    points = [*zip(series.x, low), *reversed(list(zip(series.x, high)))]
    edges = [(x, y) for x, y in points if units.is_number(x) and units.is_number(y)]
    path = " ".join(f"{across(x):.1f},{1000 - up(y):.1f}" for x, y in edges)
    return Markup('<polygon class="band s{}" points="{}"/>').format(series.slot, path) if path else Markup("")


def _labels(values: Sequence[float], scale: Callable[[float], float], side: str) -> Markup:
    """Tick labels at `scale(v)` thousandths of the frame from its `side`."""
    return _joined(Markup('<span style="{}:{:.2f}%">{}</span>').format(side, scale(v) / 10, _tick(v, values))
                   for v in values)


def _tick(value: float, values: Sequence[float]) -> str:
    """Tick labels share their decimals, so that 2.5 and 3.0 line up; large ones take an SI prefix instead."""
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(value)
    if max(map(abs, values)) >= 1000 or 0 < step < 1e-3:
        return units.tick(value) if step >= 1e-3 else units.number(value)
    return units.fixed(value, max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0)


def _legend(entries: Sequence[tuple[str, int]]) -> Markup:
    items = _joined(Markup('<li class="s{}">{}</li>').format(slot, name) for name, slot in dict.fromkeys(entries))
    return Markup('<ul class="legend">{}</ul>').format(items)


def _dot(name: str, value: float | None, slot: int, across: Callable[[float], float], down: float,
         decimals: int) -> Markup:
    """One dot; `down` (0 to 1) sets the series of a row apart, so that equal values hide nothing."""
    if not units.is_number(value):
        return Markup("")
    return Markup('<i class="s{}" style="left:{:.2f}%;top:{:.0f}%" title="{}: {}"></i>').format(
        slot, across(value) / 10, 100 * down, name, units.fixed(value, decimals))


def _bar(name: str, value: float | None, top: float, slot: int, form: Callable[[float], str]) -> Markup:
    if not units.is_number(value):
        return Markup("")
    return Markup('<div class="bar s{}" title="{}: {}"><i style="width:{:.2f}%"></i><b>{}</b></div>').format(
        slot, name, form(value), 100 * value / top, form(value))


def _cell(value: float, name: str, wide: bool, stops: tuple[float, float, float],
          form: Callable[[float], str]) -> Markup:
    low, center, high = stops
    if not units.is_number(value):
        return Markup('<td title="{}">{}</td>').format(name, "" if wide else units.ABSENT)
    hot = value >= center
    reach = (high - center) if hot else (center - low)
    depth = min(abs(value - center) / reach, 1.0) if reach > 0 else 0.0
    return Markup('<td class="{}" style="--depth:{:.3f}" title="{}: {}">{}</td>').format(
        "hot" if hot else "cold", depth, name, form(value), "" if wide else form(value))


def _edge(start: tuple[int, int], end: tuple[int, int], slot: int) -> Markup:
    (x0, y0), (x1, y1) = start, end
    path = f"M{x0} {y0}V{y1}" if x0 == x1 else f"M{x0} {y0}C{x0} {y0 + 30} {x1} {y0 + 10} {x1} {y0 + 44}V{y1}"
    return Markup('<path class="s{}" d="{}"/>').format(slot, path)
