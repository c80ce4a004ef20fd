"""Charts of a comparison: intervals beside the baseline, learning curves with bands over seeds, and expert load."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from mixwell.compare.results import Comparison, Result
from mixwell.core import units
from mixwell.report import plots
from mixwell.report.experts import DEAD, DOMINANT, entropy, loads_of
from mixwell.report.records import figure

GRID = 120  # points of a curve
AXES = {"tokens": "tokens", "flops": "training FLOP", "seconds": "seconds of training"}
Line = tuple[np.ndarray, np.ndarray]  # budget spent, loss


def forest(found: Comparison, colors: Mapping[str, int]) -> Markup:
    """Each variant's difference to the baseline: every seed a small dot, the mean a large one, the interval a bar."""
    base = next((r.scores for r in found.ranked if r.name == found.baseline), {})
    rows = [(r, d, [v - base[s] for s, v in r.scores.items() if s in base])
            for r in found.ranked if (d := found.differences.get(r.name))]
    if not rows:
        return Markup("")
    ends = [v for _, d, gaps in rows for v in (*gaps, *_ends(d.interval.low, d.interval.high))] + [0.0]
    low, high = min(ends), max(ends)
    pad = 0.05 * (high - low) or 1e-3
    low, high = low - pad, high + pad

    def left(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    drawn = Markup("").join(_forest_row(r.name, d.interval.low, d.interval.mean, d.interval.high, gaps, colors[r.name],
                                        left) for r, d, gaps in rows)
    marks = Markup("").join(Markup('<span style="left:{}">{}</span>').format(left(v), _axis(v))
                            for v in plots.ticks(low, high))
    return Markup('<figure class="dots forest">{}<div class="dot-row"><span class="name"></span><div class="x-ticks">{}'
                  '</div></div><div class="x-label">bits per byte minus those of {}; left of the line is better'
                  '</div></figure>').format(drawn, marks, found.baseline)


def _ends(low: float, high: float) -> tuple[float, ...]:
    return (low, high) if math.isfinite(low) else ()


def _axis(value: float) -> str:
    return f"{value:+.4f}".rstrip("0").rstrip(".").replace("-", "−") if abs(value) > 1e-12 else "0"


def _forest_row(name: str, low: float, mean: float, high: float, gaps: Sequence[float], slot: int, left: Any) -> Markup:
    bar = Markup("")
    if math.isfinite(low):
        width = f"calc({left(high)} - {left(low)})"
        bar = Markup('<b class="s{}" style="left:{};width:{}"></b>').format(slot, left(low), width)
    dots = Markup("").join(Markup('<u class="s{}" style="left:{}"></u>').format(slot, left(g)) for g in gaps)
    whole = Markup('<i class="s{}" style="left:{};top:50%" title="{}: {}"></i>').format(
        slot, left(mean), name, units.fixed(mean, 4))
    return Markup('<div class="dot-row"><span class="name">{}</span><span class="track">{}<s style="left:{}"></s>{}{}'
                  '</span></div>').format(name, bar, left(0.0), dots, whole)


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
        lines = [s for r in shown if (s := _loss_line(r, budget, colors[r.name]))]
        charts.append((label, plots.line_chart(lines, x_label=label, y_label="training loss, nats per token",
                                               y_range=_view(lines))))
    charts.append(("held out", _held_out(shown, colors)))
    return [(label, chart) for label, chart in charts if chart]


def _shown(found: Comparison) -> list[Result]:
    others = [r for r in found.ranked if r.name != found.baseline]
    own = [r for r in found.ranked if r.name == found.baseline]
    return own + others[: plots.NUM_SLOTS - len(own)]


def _lines(result: Result, budget: str) -> dict[int, Line]:
    """Seed -> smoothed loss against what was spent."""
    found = {}
    for seed, trial in result.trials.items():
        metrics = trial.training.metrics if trial.training else ()
        points = [(figure(m, budget), figure(m, "loss_nats")) for m in metrics]
        finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        if finite:
            x, y = np.array(finite).T
            found[seed] = x, np.array(plots.smooth(y.tolist(), len(y) // 25))
    return found


def _common(lines: Sequence[Line]) -> np.ndarray:
    """Budgets that all lines have reached."""
    return np.linspace(max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines), GRID)


def _banded(name: str, slot: int, x: np.ndarray, rows_SN: np.ndarray) -> plots.Series:
    band = (rows_SN.min(0).tolist(), rows_SN.max(0).tolist()) if len(rows_SN) > 1 else ((), ())
    return plots.Series(name=name, x=x.tolist(), y=rows_SN.mean(0).tolist(), slot=slot, band=band)


def _loss_line(result: Result, budget: str, slot: int) -> plots.Series | None:
    lines = list(_lines(result, budget).values())
    if not lines or (x := _common(lines))[-1] < x[0]:
        return None
    return _banded(result.name, slot, x, np.stack([np.interp(x, *line) for line in lines]))


def _gap_chart(found: Comparison, shown: Sequence[Result], colors: Mapping[str, int]) -> Markup:
    """Loss minus the baseline's at the same seed and the same tokens."""
    base = next((_lines(r, "tokens") for r in shown if r.name == found.baseline), {})
    series = []
    for result in shown:
        own = {s: line for s, line in _lines(result, "tokens").items() if s in base}
        if result.name == found.baseline or not own:
            continue
        x = _common([*own.values(), *(base[s] for s in own)])
        if x[-1] > x[0]:
            gaps = np.stack([np.interp(x, *line) - np.interp(x, *base[s]) for s, line in own.items()])
            series.append(_banded(result.name, colors[result.name], x, gaps))
    if not series:
        return Markup("")
    zero = plots.Series(name=found.baseline, x=[series[0].x[0], series[0].x[-1]], y=[0.0, 0.0],
                        slot=colors[found.baseline])
    return plots.line_chart([*series, zero], x_label="tokens", y_range=_view(series, two_sided=True),
                            y_label=f"training loss minus that of {found.baseline}, nats per token; below 0 is better")


def _view(lines: Sequence[plots.Series], two_sided: bool = False) -> tuple[float, float] | None:
    """The range of the lines after the first 15 % of the axis, so that the end, where they differ, has room."""
    points = [(x, y) for line in lines for ys in (line.y, *line.band) for x, y in zip(line.x, ys)]
    if not points:
        return None
    start, end = min(x for x, _ in points), max(x for x, _ in points)
    late = [y for x, y in points if x >= start + 0.15 * (end - start)]
    low, high = min(late), max(late)
    low, high = (min(low, 0.0), max(high, 0.0)) if two_sided else (low, high)
    return (low - 0.06 * (high - low), high + 0.06 * (high - low)) if high > low else None


def _held_out(shown: Sequence[Result], colors: Mapping[str, int]) -> Markup:
    """Bits per byte during training, where the recipe asked for evaluations on the way."""
    series = []
    for result in shown:
        rows = [[(figure(m, "tokens"), figure(m["evaluation"], "mean")) for m in t.training.metrics
                 if m.get("evaluation")] for t in result.trials.values() if t.training]
        if rows and all(row and [x for x, _ in row] == [x for x, _ in rows[0]] for row in rows):
            values = np.array([[y for _, y in row] for row in rows])
            series.append(_banded(result.name, colors[result.name], np.array([x for x, _ in rows[0]]), values))
    return plots.line_chart(series, x_label="tokens", y_label="bits per byte of held-out text")


def loads(found: Comparison) -> list[dict[str, Any]]:
    """A heat map for each variant with experts: layers by experts, sorted by load so that seeds can be averaged."""
    return [view for r in found.ranked if (view := _load(r))]


def _load(result: Result) -> dict[str, Any]:
    by_seed = [loads_of(trial.stage) for trial in result.trials.values()]
    sizes = [{layer: len(shares) for layer, shares in means.items()} for means in by_seed]
    layers = [layer for layer, size in sizes[0].items() if all(own.get(layer) == size for own in sizes)]
    if not layers:
        return {}
    ordered = {layer: np.array([sorted(m[layer], reverse=True) for m in by_seed]) for layer in layers}
    count = max(rows.shape[1] for rows in ordered.values())
    means = [[*rows.mean(0).tolist(), *[math.nan] * (count - rows.shape[1])] for rows in ordered.values()]
    beside = {"entropy": [units.fixed(np.mean([entropy(row.tolist()) for row in rows]).item(), 3)
                          for rows in ordered.values()],
              "dead": [f"{(rows < DEAD / rows.shape[1]).sum(1).mean():g}"[:4] for rows in ordered.values()]}
    top = max(min(1.0, DOMINANT / count), 1 / count)
    return {"name": result.name, "map": plots.heat_map(
        means, rows=layers, columns=[str(i + 1) for i in range(count)], low=0.0, center=1 / count, high=top,
        corner="layer", form=lambda v: f"{100 * v:.0f}", beside=beside)}
