"""Charts of a comparison: intervals beside the baseline, learning curves with bands over seeds, and expert load."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from markupsafe import Markup

from mixwell.compare.results import Comparison, Result
from mixwell.core import units
from mixwell.report import plots
from mixwell.report.axes import Range, scale, ticks
from mixwell.report.experts import DEAD, entropy, load_map, loads_of
from mixwell.report.records import StageRecord, figure
from mixwell.report.statistics import Difference
from mixwell.report.training import AXES, Point

GRID = 120  # points of a curve
Place = Callable[[float], str]  # a value as CSS's distance from the left
Line = tuple[np.ndarray, np.ndarray]  # budget spent, loss

_FOREST = Markup('<figure class="dots forest">{}<div class="dot-row"><span class="name"></span><div class="x-ticks">{}'
                 '</div></div><div class="x-label">bits per byte minus those of {}; left of the line is better'
                 '</div></figure>')
_FOREST_ROW = Markup('<div class="dot-row"><span class="name">{}</span>'
                     '<span class="track">{}<s style="left:{}"></s>{}{}</span></div>')
_INTERVAL = Markup('<b class="s{}" style="left:{};width:{}"></b>')
_SEED = Markup('<u class="s{}" style="left:{}"></u>')
_MEAN = Markup('<i class="s{}" style="left:{};top:50%" title="{}: {}"></i>')
_TICK = Markup('<span style="left:{}">{}</span>')


def forest(found: Comparison, colors: Mapping[str, int]) -> Markup:
    """Each variant's difference to the baseline: every seed a small dot, the mean a large one, the interval a bar."""
    base = _scores(found, found.baseline)
    gaps, ends = {}, [0.0]
    for result in found.ranked:
        difference = found.differences.get(result.name)
        if difference:
            gaps[result.name] = [score - base[seed] for seed, score in result.scores.items() if seed in base]
            ends += gaps[result.name]
            ends += _ends(difference)
    if not gaps:
        return Markup("")
    low, high = _widened(ends)
    place = scale((low, high))

    def left(value: float) -> str:
        return f"{place(value) / 10:.2f}%"

    rows = [_forest_row(name, found.differences[name], own, colors[name], left) for name, own in gaps.items()]
    marks = [_TICK.format(left(value), _axis(value)) for value in ticks(low, high)]
    return _FOREST.format(Markup("").join(rows), Markup("").join(marks), found.baseline)


def _scores(found: Comparison, name: str) -> dict[int, float]:
    for result in found.ranked:
        if result.name == name:
            return result.scores
    return {}


def _ends(difference: Difference) -> list[float]:
    """The ends of the interval; none for one seed."""
    own = difference.interval
    return [own.low, own.high] if math.isfinite(own.low) else []


def _widened(values: Sequence[float]) -> Range:
    """A twentieth more at each end, so that no dot lies on the edge."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 1e-3
    return low - margin, high + margin


def _axis(value: float) -> str:
    """A difference as short as it can be written, with its sign."""
    if abs(value) <= 1e-12:
        return "0"
    text = f"{value:+.4f}".rstrip("0")
    return text.rstrip(".").replace("-", "−")


def _forest_row(name: str, difference: Difference, gaps: Sequence[float], slot: int, left: Place) -> Markup:
    own = difference.interval
    bar = ""
    if math.isfinite(own.low):
        width = f"calc({left(own.high)} - {left(own.low)})"
        bar = _INTERVAL.format(slot, left(own.low), width)
    dots = [_SEED.format(slot, left(gap)) for gap in gaps]
    mean = _MEAN.format(slot, left(own.mean), name, units.fixed(own.mean, 4))
    return _FOREST_ROW.format(name, bar, left(0.0), Markup("").join(dots), mean)


def curves(found: Comparison, colors: Mapping[str, int]) -> list[tuple[str, Markup]]:
    """(label, chart): the gap to the baseline first, then the loss against tokens, FLOPs and seconds.

    Lines are means over seeds, bands go from the lowest seed to the highest. Beyond as many variants as there are
    colours, the baseline and the best are shown. With several tokenizers there is nothing to show.
    """
    if not found.one_tokenizer:
        return []
    shown = _shown(found)
    charts = [("gap to the baseline", _gap_chart(found, shown, colors))]
    for budget, label in AXES.items():
        charts.append((label, _loss_chart(shown, budget, colors)))
    charts.append(("held out", _held_out(shown, colors)))
    return [(label, chart) for label, chart in charts if chart]


def _shown(found: Comparison) -> list[Result]:
    own = [result for result in found.ranked if result.name == found.baseline]
    others = [result for result in found.ranked if result.name != found.baseline]
    room = plots.NUM_SLOTS - len(own)
    return own + others[:room]


def _lines(result: Result, budget: str) -> dict[int, Line]:
    """Seed -> smoothed loss against what was spent."""
    found = {}
    for seed, trial in result.trials.items():
        points = _losses(trial.training, budget) if trial.training else []
        if points:
            x, y = np.array(points).T
            smooth = plots.smooth(y.tolist(), len(y) // 25)
            found[seed] = (x, np.array(smooth))
    return found


def _losses(training: StageRecord, budget: str) -> list[Point]:
    """The finite points of a training: what was spent, and the loss in nats per token."""
    points = []
    for line in training.metrics:
        x = figure(line, budget)
        y = figure(line, "loss_nats")
        if math.isfinite(x) and math.isfinite(y):
            points.append((x, y))
    return points


def _common(lines: Sequence[Line]) -> np.ndarray:
    """Budgets that all lines have reached; they fall where the lines have none in common."""
    first = max(x[0] for x, _ in lines)
    last = min(x[-1] for x, _ in lines)
    return np.linspace(first, last, GRID)


def _banded(name: str, slot: int, x: np.ndarray, rows_SN: np.ndarray) -> plots.Series:
    """The mean over seeds, and a band from the lowest seed to the highest."""
    mean = plots.Series(name=name, x=x.tolist(), y=rows_SN.mean(0).tolist(), slot=slot)
    if len(rows_SN) == 1:
        return mean
    low = rows_SN.min(0)
    high = rows_SN.max(0)
    return replace(mean, band=(low.tolist(), high.tolist()))


def _loss_chart(shown: Sequence[Result], budget: str, colors: Mapping[str, int]) -> Markup:
    series = []
    for result in shown:
        line = _loss_line(result, budget, colors[result.name])
        if line:
            series.append(line)
    return plots.line_chart(series, x_label=AXES[budget], y_label="training loss, nats per token",
                            y_range=_view(series))


def _loss_line(result: Result, budget: str, slot: int) -> plots.Series | None:
    lines = list(_lines(result, budget).values())
    if not lines:
        return None
    x = _common(lines)
    if x[-1] < x[0]:
        return None
    rows = [np.interp(x, *line) for line in lines]
    return _banded(result.name, slot, x, np.stack(rows))


def _gap_chart(found: Comparison, shown: Sequence[Result], colors: Mapping[str, int]) -> Markup:
    """Loss minus the baseline's at the same seed and the same tokens."""
    name = found.baseline
    lines = {result.name: _lines(result, "tokens") for result in shown}
    base = lines.pop(name, {})
    series = []
    for other, own in lines.items():
        line = _gap_line(other, own, base, colors[other])
        if line:
            series.append(line)
    if not series:
        return Markup("")
    x = series[0].x
    zero = plots.Series(name=name, x=[x[0], x[-1]], y=[0.0, 0.0], slot=colors[name])
    return plots.line_chart([*series, zero], x_label="tokens", y_range=_view(series, two_sided=True),
                            y_label=f"training loss minus that of {name}, nats per token; below 0 is better")


def _gap_line(name: str, own: Mapping[int, Line], base: Mapping[int, Line], slot: int) -> plots.Series | None:
    """The gap over the seeds that both have; None without one, or without tokens that all have reached."""
    shared = [seed for seed in own if seed in base]
    if not shared:
        return None
    x = _common([line[seed] for line in (own, base) for seed in shared])
    if not x[-1] > x[0]:
        return None
    gaps = []
    for seed in shared:
        ours = np.interp(x, *own[seed])
        theirs = np.interp(x, *base[seed])
        gaps.append(ours - theirs)
    return _banded(name, slot, x, np.stack(gaps))


def _view(lines: Sequence[plots.Series], two_sided: bool = False) -> Range | None:
    """The range of the lines after the first 15 % of the axis, so that the end, where they differ, has room."""
    points: list[Point] = []
    for line in lines:
        for ys in (line.y, *line.band):
            points += zip(line.x, ys)
    if not points:
        return None
    start, end = min(points)[0], max(points)[0]
    fallen = start + 0.15 * (end - start)
    late = [y for x, y in points if x >= fallen]
    if two_sided:
        late.append(0.0)
    low, high = min(late), max(late)
    if not high > low:
        return None
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _held_out(shown: Sequence[Result], colors: Mapping[str, int]) -> Markup:
    """Bits per byte during training, where the recipe asked for evaluations on the way."""
    series = []
    for result in shown:
        line = _held_out_line(result, colors[result.name])
        if line:
            series.append(line)
    return plots.line_chart(series, x_label="tokens", y_label="bits per byte of held-out text")


def _held_out_line(result: Result, slot: int) -> plots.Series | None:
    """The mean over seeds; None where these were not evaluated at the same tokens."""
    x_by_seed, rows = [], []
    for trial in result.trials.values():
        if trial.training:
            evaluated = [line for line in trial.training.metrics if line.get("evaluation")]
            x_by_seed.append([figure(line, "tokens") for line in evaluated])
            rows.append([figure(line["evaluation"], "mean") for line in evaluated])
    if not rows or not rows[0]:
        return None
    x = x_by_seed[0]
    if any(other != x for other in x_by_seed):
        return None
    return _banded(result.name, slot, np.array(x), np.array(rows))


def loads(found: Comparison) -> list[dict[str, Any]]:
    """A heat map for each variant with experts: layers by experts, sorted by load so that seeds can be averaged."""
    views = []
    for result in found.ranked:
        by_layer = _sorted_loads(result)
        if by_layer:
            views.append({"name": result.name, "map": _load_map(by_layer)})
    return views


def _sorted_loads(result: Result) -> dict[str, np.ndarray]:
    """Layer -> shares [seeds, experts], the busiest expert first; layers that not all seeds have alike are left out."""
    by_seed = [loads_of(trial.stage) for trial in result.trials.values()]
    found = {}
    for layer, shares in by_seed[0].items():
        own = [seed.get(layer, []) for seed in by_seed]
        sizes = {len(row) for row in own}
        if sizes == {len(shares)}:
            found[layer] = np.array([sorted(row, reverse=True) for row in own])
    return found


def _load_map(by_layer: Mapping[str, np.ndarray]) -> Markup:
    """Means over the seeds in per cent, with entropy and the number of dead experts beside them."""
    means = {layer: rows_SE.mean(0).tolist() for layer, rows_SE in by_layer.items()}
    entropies = [_mean_entropy(rows_SE) for rows_SE in by_layer.values()]
    dead = [_mean_dead(rows_SE) for rows_SE in by_layer.values()]
    return load_map("layer", means, {"entropy": entropies, "dead": dead}, first=1, decimals=0)


def _mean_entropy(rows_SE: np.ndarray) -> str:
    found = [entropy(row.tolist()) for row in rows_SE]
    return units.fixed(np.mean(found).item(), 3)


def _mean_dead(rows_SE: np.ndarray) -> str:
    dead_SE = rows_SE < DEAD / rows_SE.shape[1]
    mean = dead_SE.sum(1).mean()
    return f"{mean:g}"[:4]
