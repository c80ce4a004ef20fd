"""Loss curves of the training stages and the quality of every model on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mixwell.core import units
from mixwell.report import plots
from mixwell.report.records import RunRecord, StageRecord, figure, numbers
from mixwell.report.sides import sides

AXES = {"tokens": "tokens", "flops": "training FLOP", "seconds": "seconds of training"}
Points = list[tuple[float, float]]  # budget spent since the first training, loss


def colors(run: RunRecord) -> dict[str, int]:
    """A colour slot for each stage with a model that is shown; the seeds of a side share theirs."""
    side = side_names(run)
    names = {s.id: side.get(s.id, s.id) for s in run.stages if s.trains or s.held_out}
    slot = plots.slots(list(names.values()))
    return {id: slot[name] for id, name in names.items()}


def side_names(run: RunRecord) -> dict[str, str]:
    """Stage -> side, for the trainings that end a side."""
    return {end.id: side.name for side in sides(run) for end in side.ends.values()}


def loss(run: RunRecord, slot: Mapping[str, int]) -> list[tuple[str, Markup]]:
    """One chart a budget, then held-out text where evaluations were made on the way.

    A line begins where its parent ended, so that branches part at the model they share.
    """
    charts = []
    for budget, label in AXES.items():
        lines = {s.id: _line(run, s, budget) for s in run.stages if s.trains}
        faint = [_series(name, raw, slot[name], faint=True) for name, raw in lines.items()]
        bold = _bold(run, lines, slot)
        if chart := plots.line_chart([*faint, *bold], x_label=label, y_label="training loss, nats per token",
                                     y_range=_view(bold)):
            charts.append((label, chart))
    held = {s.id: _points(run, s, "tokens", _held_out) for s in run.stages if s.trains}
    chart = plots.line_chart(_means(run, {k: v for k, v in held.items() if v}, slot), x_label=AXES["tokens"],
                             y_label="bits per byte of held-out text")
    return [*charts, ("held out", chart)] if chart else charts


def _series(name: str, points: Points, slot: int, *, faint: bool = False) -> plots.Series:
    return plots.Series(name=name, x=[x for x, _ in points], y=[y for _, y in points], slot=slot, faint=faint)


def _line(run: RunRecord, stage: StageRecord, budget: str) -> Points:
    return _points(run, stage, budget, lambda line: figure(line, "loss_nats"))


def _points(run: RunRecord, stage: StageRecord, budget: str, value: Callable[[Mapping[str, Any]], float]) -> Points:
    """Finite points of a stage, counted from the first training of its line."""
    start = math.fsum(figure(s.result, budget) for s in run.ancestors(stage) if s.trains and s.id != stage.id)
    points = [(start + figure(line, budget), value(line)) for line in stage.metrics]
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _held_out(line: Mapping[str, Any]) -> float:
    return figure(line.get("evaluation") or {}, "mean")


def _bold(run: RunRecord, lines: Mapping[str, Points], slot: Mapping[str, int]) -> list[plots.Series]:
    """The lines made smooth, each joined to the end of the training that it carries on."""
    smooth: dict[str, Points] = {}
    for name, points in lines.items():
        y = plots.smooth([y for _, y in points], len(points) // 25)
        trained = [a.id for a in run.ancestors(run[name]) if a.id in smooth]
        before = smooth[trained[-1]][-1:] if trained else []
        smooth[name] = [*before, *((x, v) for (x, _), v in zip(points, y))]
    return _means(run, smooth, slot)


def _means(run: RunRecord, lines: Mapping[str, Points], slot: Mapping[str, int]) -> list[plots.Series]:
    """One line a side: the mean over its seeds, point by point; seeds with other numbers of points stay apart."""
    side = side_names(run)
    groups: dict[tuple[str, int], list[str]] = {}
    for name, points in lines.items():
        groups.setdefault((side.get(name, name), len(points)), []).append(name)
    return [_series(name, [_mean_point(at) for at in zip(*(lines[one] for one in members))], slot[members[0]])
            for (name, _), members in groups.items()]


def _mean_point(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    count = len(points)
    return math.fsum(x for x, _ in points) / count, math.fsum(y for _, y in points) / count


def _view(lines: Sequence[plots.Series]) -> tuple[float, float] | None:
    """From a little under the lowest loss to the highest after the first 15 % of the axis: the first fall is cut, so
    that the end, where the branches differ, has room."""
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y)]
    if not points:
        return None
    start, end = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for x, y in points if x >= start + 0.15 * (end - start))
    return (low - 0.06 * (high - low), high + 0.06 * (high - low)) if high > low else None


def quality(run: RunRecord, slot: Mapping[str, int]) -> dict[str, Any]:
    """Bits per byte by stage and domain, the lowest of a column marked, and the change of the mean from the parent."""
    scores = {s.id: row for s in run.stages if (row := numbers(s.held_out.get("bits_per_byte")))}
    if not scores:
        return {}
    domains = list(dict.fromkeys(d for row in scores.values() for d in row))
    mean = {name: _mean(run[name], row) for name, row in scores.items()}
    columns = [{name: row[d] for name, row in scores.items() if d in row} for d in domains] + [mean]
    rows = [{"name": name, "cells": [cell(name, column, 3) for column in columns], "change": _change(run, name, mean)}
            for name in scores]
    chart = plots.dot_chart(domains, {name: [row.get(d) for d in domains] for name, row in scores.items()},
                            label="bits per byte of held-out text, lower is better", colors=slot)
    return {"head": [*domains, "mean"], "rows": rows, "chart": chart, "changes": any(row["change"] for row in rows),
            "read": _read(run, domains)}


def _read(run: RunRecord, domains: Sequence[str]) -> list[str]:
    """Held-out tokens that the figures rest on, by domain; empty where no evaluation tells."""
    read = [numbers(s.held_out.get("tokens")) for s in run.stages]
    if not any(read):
        return []
    return [units.si(min((row[d] for row in read if d in row), default=None)) for d in domains]


def cell(name: str, column: Mapping[str, float], decimals: int) -> dict[str, Any]:
    """A figure of a column, marked where it alone is the lowest as printed: a tie has no best."""
    shown = {other: units.fixed(value, decimals) for other, value in column.items()}
    own = shown.get(name, units.ABSENT)
    best = len(shown) > 1 and column.get(name) == min(column.values()) and list(shown.values()).count(own) == 1
    return {"text": own, "best": best}


def _change(run: RunRecord, name: str, mean: Mapping[str, float]) -> str:
    """`−2.41 % (dense)`: against the nearest measured model that this one was made from."""
    parent = run.parent(run[name])
    while parent is not None and parent.id not in mean:
        parent = run.parent(parent)
    return f"{units.percent(mean[name] / mean[parent.id] - 1, 2, sign=True)} ({parent.id})" if parent else ""


def _mean(stage: StageRecord, row: Mapping[str, float]) -> float:
    stated = figure(stage.held_out, "mean")
    return stated if math.isfinite(stated) else math.fsum(row.values()) / len(row)
