"""Loss curves of the training stages and the quality of every model on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mixwell.core import units
from mixwell.report import plots
from mixwell.report.axes import Range
from mixwell.report.records import RunRecord, StageRecord, figure, numbers
from mixwell.report.sides import sides

AXES = {"tokens": "tokens", "flops": "training FLOP", "seconds": "seconds of training"}
Point = tuple[float, float]  # budget spent since the first training, loss
Points = list[Point]


def colors(run: RunRecord) -> dict[str, int]:
    """A colour slot for each stage with a model that is shown; the seeds of a side share theirs."""
    side = side_names(run)
    names = {}
    for stage in run.stages:
        if stage.trains or stage.held_out:
            names[stage.id] = side.get(stage.id, stage.id)
    slot = plots.slots(list(names.values()))
    return {stage: slot[name] for stage, name in names.items()}


def side_names(run: RunRecord) -> dict[str, str]:
    """Stage -> side, for the trainings that end a side."""
    names: dict[str, str] = {}
    for side in sides(run):
        names |= {end.id: side.name for end in side.ends.values()}
    return names


def loss(run: RunRecord, slot: Mapping[str, int]) -> list[tuple[str, Markup]]:
    """One chart a budget, then held-out text where evaluations were made on the way.

    A line begins where its parent ended, so that branches part at the model they share.
    """
    charts = []
    for budget, label in AXES.items():
        if chart := _training_loss(run, budget, slot):
            charts.append((label, chart))
    if chart := _held_out_loss(run, slot):
        charts.append(("held out", chart))
    return charts


def _training_loss(run: RunRecord, budget: str, slot: Mapping[str, int]) -> Markup:
    lines = {}
    faint = []
    for stage in run.stages:
        if stage.trains:
            raw = _points(run, stage, budget, _loss)
            lines[stage.id] = raw
            faint.append(_series(stage.id, raw, slot[stage.id], faint=True))
    bold = _bold(run, lines, slot)
    return plots.line_chart([*faint, *bold], x_label=AXES[budget], y_label="training loss, nats per token",
                            y_range=_view(bold))


def _held_out_loss(run: RunRecord, slot: Mapping[str, int]) -> Markup:
    lines = {}
    for stage in run.stages:
        points = _points(run, stage, "tokens", _held_out) if stage.trains else []
        if points:
            lines[stage.id] = points
    means = _means(run, lines, slot)
    return plots.line_chart(means, x_label=AXES["tokens"], y_label="bits per byte of held-out text")


def _series(name: str, points: Sequence[Point], slot: int, *, faint: bool = False) -> plots.Series:
    x = [x for x, _ in points]
    y = [y for _, y in points]
    return plots.Series(name=name, x=x, y=y, slot=slot, faint=faint)


def _loss(line: Mapping[str, Any]) -> float:
    return figure(line, "loss_nats")


def _held_out(line: Mapping[str, Any]) -> float:
    return figure(line.get("evaluation") or {}, "mean")


def _points(run: RunRecord, stage: StageRecord, budget: str, value: Callable[[Mapping[str, Any]], float]) -> Points:
    """Finite points of a stage, counted from the first training of its line."""
    earlier = [s for s in run.ancestors(stage) if s.trains and s.id != stage.id]
    start = math.fsum(figure(s.result, budget) for s in earlier)
    points = []
    for line in stage.metrics:
        x = start + figure(line, budget)
        y = value(line)
        if math.isfinite(x) and math.isfinite(y):
            points.append((x, y))
    return points


def _bold(run: RunRecord, lines: Mapping[str, Points], slot: Mapping[str, int]) -> list[plots.Series]:
    """The lines made smooth, each joined to the end of the training that it carries on."""
    smooth: dict[str, Points] = {}
    for name, points in lines.items():
        x = [x for x, _ in points]
        raw = [y for _, y in points]
        y = plots.smooth(raw, len(points) // 25)
        joined: Points = []
        for earlier in run.ancestors(run[name]):
            joined = smooth.get(earlier.id, joined)[-1:]
        smooth[name] = [*joined, *zip(x, y)]
    return _means(run, smooth, slot)


def _means(run: RunRecord, lines: Mapping[str, Points], slot: Mapping[str, int]) -> list[plots.Series]:
    """One line a side: the mean over its seeds, point by point; seeds with other numbers of points stay apart."""
    side = side_names(run)
    groups: dict[tuple[str, int], list[str]] = {}
    for name, points in lines.items():
        group = (side.get(name, name), len(points))
        groups.setdefault(group, []).append(name)
    series = []
    for (name, _), members in groups.items():
        own = [lines[member] for member in members]
        means = [_mean_point(at) for at in zip(*own)]
        series.append(_series(name, means, slot[members[0]]))
    return series


def _mean_point(points: Sequence[Point]) -> Point:
    count = len(points)
    x = math.fsum(x for x, _ in points)
    y = math.fsum(y for _, y in points)
    return x / count, y / count


def _view(lines: Sequence[plots.Series]) -> Range | None:
    """From a little under the lowest loss to the highest after the first 15 % of the axis: the first fall is cut, so
    that the end, where the branches differ, has room."""
    points: Points = []
    for line in lines:
        points += zip(line.x, line.y)
    if not points:
        return None
    start, end = min(points)[0], max(points)[0]
    fallen = start + 0.15 * (end - start)
    low = min(y for _, y in points)
    high = max(y for x, y in points if x >= fallen)
    if not high > low:
        return None
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def quality(run: RunRecord, slot: Mapping[str, int]) -> dict[str, Any]:
    """Bits per byte by stage and domain, the lowest of a column marked, and the change of the mean from the parent."""
    scores = _scores(run)
    if not scores:
        return {}
    domains = _domains(scores)
    mean = {name: _mean(run[name], row) for name, row in scores.items()}
    columns = []
    for domain in domains:
        columns.append({name: row[domain] for name, row in scores.items() if domain in row})
    columns.append(mean)
    rows = []
    for name in scores:
        cells = [cell(name, column, 3) for column in columns]
        rows.append({"name": name, "cells": cells, "change": _change(run, name, mean)})
    return {
        "head": [*domains, "mean"],
        "rows": rows,
        "chart": _score_chart(scores, domains, slot),
        "changes": any(row["change"] for row in rows),
        "read": _tokens_read(run, domains)}


def _scores(run: RunRecord) -> dict[str, dict[str, float]]:
    """Stage -> domain -> bits per byte, for the stages whose model was evaluated."""
    scores = {}
    for stage in run.stages:
        row = numbers(stage.held_out.get("bits_per_byte"))
        if row:
            scores[stage.id] = row
    return scores


def _domains(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    domains: dict[str, None] = {}
    for row in scores.values():
        domains |= dict.fromkeys(row)
    return list(domains)


def _score_chart(scores: Mapping[str, Mapping[str, float]], domains: Sequence[str], slot: Mapping[str, int]) -> Markup:
    series = {}
    for name, row in scores.items():
        series[name] = [row.get(domain) for domain in domains]
    return plots.dot_chart(domains, series, label="bits per byte of held-out text, lower is better", colors=slot)


def _tokens_read(run: RunRecord, domains: Sequence[str]) -> list[str]:
    """Held-out tokens that the figures rest on, by domain, the least of all stages; empty where no evaluation says."""
    read = [numbers(stage.held_out.get("tokens")) for stage in run.stages]
    if not any(read):
        return []
    counts = []
    for domain in domains:
        least = min((row[domain] for row in read if domain in row), default=None)
        counts.append(units.si(least))
    return counts


def cell(name: str, column: Mapping[str, float], decimals: int) -> dict[str, Any]:
    """A figure of a column, marked where it alone is the lowest as printed: a tie has no best."""
    shown = {other: units.fixed(value, decimals) for other, value in column.items()}
    if name not in column:
        return {"text": units.ABSENT, "best": False}
    own = shown[name]
    lowest = column[name] == min(column.values())
    alone = list(shown.values()).count(own) == 1
    return {"text": own, "best": lowest and alone and len(shown) > 1}


def _change(run: RunRecord, name: str, mean: Mapping[str, float]) -> str:
    """`−2.41 % (dense)`: against the nearest measured model that this one was made from."""
    parent = run.parent(run[name])
    while parent is not None and parent.id not in mean:
        parent = run.parent(parent)
    if parent is None:
        return ""
    change = mean[name] / mean[parent.id] - 1
    return f"{units.percent(change, 2, sign=True)} ({parent.id})"


def _mean(stage: StageRecord, row: Mapping[str, float]) -> float:
    """The mean as the evaluation gives it, else over the domains."""
    stated = figure(stage.held_out, "mean")
    if math.isfinite(stated):
        return stated
    return math.fsum(row.values()) / len(row)
