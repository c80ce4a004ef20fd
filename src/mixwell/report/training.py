"""Loss curves of the training stages and the quality of every model on held-out text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mixwell.core import units
from mixwell.report import plots
from mixwell.report.run_folder import Run, Stage, figure, numbers

AXES = {"tokens": "tokens", "flops": "training FLOP", "seconds": "seconds of training"}


def loss(run: Run, colors: Mapping[str, int]) -> list[tuple[str, Markup]]:
    """One chart a budget. A line begins where its parent ended, so that branches part at the model they share."""
    charts = []
    for budget, label in AXES.items():
        curves = [(s, *_curve(run, s, budget)) for s in run.stages if s.trains]
        faint = [plots.Series(name=s.id, x=x, y=y, slot=colors[s.id], faint=True) for s, x, y in curves]
        bold = [plots.Series(name=s.id, x=x, y=plots.smooth(y, len(y) // 25), slot=colors[s.id])
                for s, x, y in curves]
        if chart := plots.line_chart([*faint, *bold], x_label=label, y_label="training loss, nats per token",
                                     y_range=_view(bold)):
            charts.append((label, chart))
    return charts


def _curve(run: Run, stage: Stage, budget: str) -> tuple[list[float], list[float]]:
    """Finite points of a stage's loss, counted from the first training of its line."""
    start = sum(run.total(s, budget) for s in run.ancestors(stage) if s.trains and s.id != stage.id)
    points = [(start + figure(line, budget), figure(line, "loss_nats")) for line in stage.metrics]
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    return [x for x, _ in finite], [y for _, y in finite]


def _view(lines: Sequence[plots.Series]) -> tuple[float, float] | None:
    """From a little under the lowest loss to the highest after the first 15 % of the axis: the first fall is cut, so
    that the end, where the branches differ, has room."""
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y)]
    if not points:
        return None
    start, end = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for x, y in points if x >= start + 0.15 * (end - start))
    return (low - 0.06 * (high - low), high + 0.06 * (high - low)) if high > low else None


def quality(run: Run, colors: Mapping[str, int]) -> dict[str, Any]:
    """Bits per byte by stage and domain, the lowest of a column marked, and the change of the mean from the parent."""
    scores = {s.id: row for s in run.stages if (row := numbers(s.evaluation.get("bits_per_byte")))}
    if not scores:
        return {}
    domains = list(dict.fromkeys(d for row in scores.values() for d in row))
    mean = {name: _mean(run[name], row) for name, row in scores.items()}
    columns = [{name: row[d] for name, row in scores.items() if d in row} for d in domains] + [mean]
    rows = [{"name": name, "cells": [_cell(name, column) for column in columns], "change": _change(run, name, mean)}
            for name in scores]
    chart = plots.dot_chart(domains, {name: [row.get(d) for d in domains] for name, row in scores.items()},
                            label="bits per byte of held-out text, lower is better", colors=colors)
    return {"head": [*domains, "mean"], "rows": rows, "chart": chart, "changes": any(row["change"] for row in rows),
            "read": _read(run, domains)}


def _read(run: Run, domains: Sequence[str]) -> list[str]:
    """Held-out tokens that the figures rest on, by domain; empty where no evaluation tells."""
    read = [numbers(s.evaluation.get("tokens")) for s in run.stages]
    if not any(read):
        return []
    return [units.si(min((row[d] for row in read if d in row), default=None)) for d in domains]


def _cell(name: str, column: Mapping[str, float]) -> dict[str, Any]:
    best = len(column) > 1 and column.get(name) == min(column.values())
    return {"text": units.fixed(column.get(name), 3), "best": best}


def _change(run: Run, name: str, mean: Mapping[str, float]) -> str:
    """`−2.41 % (dense)`: against the nearest measured model that this one was made from."""
    parent = run.parent(run[name])
    while parent is not None and parent.id not in mean:
        parent = run.parent(parent)
    return f"{units.percent(mean[name] / mean[parent.id] - 1, 2, sign=True)} ({parent.id})" if parent else ""


def _mean(stage: Stage, row: Mapping[str, float]) -> float:
    stated = stage.evaluation.get("mean")
    return float(stated) if units.is_number(stated) else sum(row.values()) / len(row)
