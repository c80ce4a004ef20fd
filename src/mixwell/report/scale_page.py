"""The report of `mixwell scale`: the law, how it fits and reaches, and what it says of a budget.

`record` gathers the fit as plain data, which `--json` writes; `page` makes HTML of that and of nothing else.

Legend: N runs, P points of a line, B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from mixwell.core import units
from mixwell.core.errors import MixwellError
from mixwell.report import findings, plots, scatter
from mixwell.report.axes import Axes, framed
from mixwell.report.findings import Row
from mixwell.scaling.law import Fit

SHARE = 0.2  # of the runs, the largest, that are left out to see how far the law reaches
POINTS = 40  # of a line
LEVEL = 0.95
ENDS = ("loss", "low", "high")
TITLES = {"parameters": "Parameters", "curves": "The law, column by column", "agreement": "Predicted and observed",
          "residuals": "Residuals", "best": "The best model under the budget", "predicted": "Predictions",
          "machine": "Machine and versions"}


def record(fit: Fit, sample: Sequence[Fit], law: str) -> dict[str, Any]:
    """A fit as plain data: parameters, residuals, how far it reaches, and its lines with bands."""
    spread = float(np.sqrt(np.mean(fit.residuals_N**2)))
    fitted_N = fit.predict(fit.runs)
    return {
        "law": law,
        "parameters": parameters(fit, sample),
        "spread": spread,
        **reach(fit, len(sample)),
        "residuals": fit.residuals_N.tolist(),
        "observed": fit.losses_N.tolist(),
        "predicted": fitted_N.tolist(),
        "cost": fit.cost_N.tolist(),
        "curves": {name: curve(fit, sample, name) for name in fit.law.columns}}


def parameters(fit: Fit, sample: Sequence[Fit]) -> dict[str, dict[str, float]]:
    """Value and ends of the interval over bootstrap draws, by name."""
    found = {}
    tail = (1 - LEVEL) / 2
    for name, value in fit.parameters.items():
        drawn_B = [one.parameters[name] for one in sample]
        low, high = np.quantile(drawn_B, [tail, 1 - tail])
        found[name] = {"value": value, "low": float(low), "high": float(high)}
    return found


def reach(fit: Fit, draws: int, seed: int = 0) -> dict[str, Any]:
    """What a fit without the largest runs makes of these: error, and how many its intervals hold; or why it cannot."""
    try:
        smaller, left_out = fit.without_largest(SHARE)
    except MixwellError as why:
        return {"largest_left_out": None, "why_not": str(why)}
    ratio_H = smaller.predict(left_out.runs) / left_out.losses_N
    error = float(np.sqrt(np.mean(np.log(ratio_H) ** 2)))
    sample = smaller.bootstrap(draws, np.random.default_rng(seed))
    low_H, high_H = smaller.interval(left_out.runs, sample)
    inside_H = (low_H <= left_out.losses_N) & (left_out.losses_N <= high_H)
    return {"largest_left_out": error, "inside": int(inside_H.sum()), "left_out": len(inside_H)}


def curve(fit: Fit, sample: Sequence[Fit], name: str) -> dict[str, list[float]]:
    """The law over one column, the others at their middle, with its band; and the runs brought to that middle.

    A run stands off the line by its own residual: what is left of it once the other columns are explained.
    """
    middle = {column: _middle(values_N) for column, values_N in fit.runs.items()}
    own_N = fit.runs[name]
    line_P = np.geomspace(own_N.min(), own_N.max(), POINTS)
    at = {**middle, name: line_P}
    drawn_BP = np.stack([one.predict(at) for one in sample])
    tail = (1 - LEVEL) / 2
    low_P, high_P = np.quantile(drawn_BP, [tail, 1 - tail], axis=0)
    explained_N = fit.predict({**middle, name: own_N})
    brought_N = explained_N * np.exp(fit.residuals_N)
    lines = {"x": line_P, "loss": fit.predict(at), "low": low_P, "high": high_P, "runs": own_N, "brought": brought_N}
    return {key: values.tolist() for key, values in lines.items()}


def _middle(values_N: np.ndarray) -> float:
    """The geometric mean."""
    logs_N = np.log(values_N)
    return float(np.exp(logs_N.mean()))


def page(data: Mapping[str, Any], title: str) -> str:
    """The report as HTML, from what `mixwell scale` gathered."""
    fit = data["fit"]
    sections: dict[str, Any] = {
        "parameters": _parameters(fit),
        "curves": [(name, _curve_chart(name, line)) for name, line in fit["curves"].items()],
        "agreement": _agreement(fit),
        "residuals": _residuals(fit),
        "best": _best(data.get("best", {})),
        "predicted": _predicted(data.get("predicted", []))}
    count = units.counted(len(fit["observed"]), "run")
    return findings.page("scale.html", TITLES, sections, title=f"{title}: {fit['law']}", lead=lead(fit),
                         points=points(data), more=count)


def lead(fit: Mapping[str, Any]) -> str:
    """How well the law fits, in a sentence."""
    law = fit["law"]
    count = units.counted(len(fit["observed"]), "run")
    spread = units.percent(fit["spread"], 2)
    return f"The law {law} describes {count} to within {spread} of the loss."


def points(data: Mapping[str, Any]) -> list[str]:
    """How far the law reaches, and what it says of the budget, a sentence each."""
    best = data.get("best", {})
    reached = _reach(data["fit"])
    return [reached, *_budget(best)]


def _reach(fit: Mapping[str, Any]) -> str:
    error = fit["largest_left_out"]
    if error is None:
        return f"How far it reaches cannot be told: without its largest fifth, {fit['why_not']}"
    held = f"{fit['inside']} of these {fit['left_out']}"
    return (f"Fitted without the largest fifth of the runs it misses them by {units.percent(error, 2)}; its "
            f"{units.percent(LEVEL, 0)} intervals hold {held}.")


def _budget(best: Mapping[str, Any]) -> list[str]:
    if not best:
        return []
    model = _in_words(best["columns"])
    loss = _loss(best["loss"])
    said = [f"Best under the budget: {model}, for a loss of {loss}."]
    if best["at_edge"]:
        said.append("That size is an end of the range that was tried: the range decides, not the law.")
    following = best.get("next_run")
    if following:
        run = _in_words(following)
        gain = units.percent(best["next_run_gain"], 0)
        said.append(f"Next run worth making, no dearer than the dearest so far: {run}. It takes {gain} off the "
                    "variance of that loss.")
    return said


def _in_words(model: Mapping[str, float]) -> str:
    """`n 2.70 G, d 61.8 G`"""
    parts = [f"{name} {units.si(value)}" for name, value in model.items()]
    return ", ".join(parts)


def _parameters(fit: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name, one in fit["parameters"].items():
        low = units.number(one["low"])
        high = units.number(one["high"])
        value = units.number(one["value"], 4)
        rows.append((name, [(value, ""), (f"{low} to {high}", "")]))
    return rows


def _curve_chart(name: str, line: Mapping[str, list[float]]) -> Markup:
    """Line, band and runs over the logarithm of a column."""
    x_P, x_N = np.log10(line["x"]), np.log10(line["runs"])
    x_range = scatter.limits(x_P, x_N)
    band = line["low"], line["high"]
    brought_N = np.array(line["brought"])
    y_range = scatter.limits(*map(np.array, band), brought_N)
    axes = Axes(x_range, y_range)
    series = plots.Series(name="law", x=x_P.tolist(), y=line["loss"], band=band)
    lines = plots.drawn([series], axes)
    dots = scatter.dots(x_N, brought_N, 1, axes)
    inside = Markup("").join([*lines, dots])
    return framed(inside, axes, x_label=f"log₁₀ {name}", y_label="loss")


def _agreement(fit: Mapping[str, Any]) -> Markup:
    told_N = np.array(fit["predicted"])
    seen_N = np.array(fit["observed"])
    return scatter.agreement(told_N, seen_N, x_label="fitted loss", y_label="observed loss", form="chart")


def _residuals(fit: Mapping[str, Any]) -> Markup:
    """Percent of the loss over the training's cost: a bend or a funnel tells that the law is another."""
    cost_N = np.log10(fit["cost"])
    percent_N = 100 * np.array(fit["residuals"])
    across = scatter.limits(cost_N)
    zero = np.array(across), np.zeros(2), plots.NUM_SLOTS
    up = scatter.limits(percent_N, np.zeros(1))
    return scatter.scatter([(cost_N, percent_N, 0)], lines=[zero], x_label="log₁₀ of the cost (training FLOPs)",
                           y_label="residual, % of the loss", x_range=across, y_range=up, form="chart")


def _best(best: Mapping[str, Any]) -> list[Row]:
    if not best:
        return []
    rows = []
    for name, value in {**best["columns"], "loss": best["loss"]}.items():
        form = _loss if name == "loss" else units.si
        ends = best["interval"].get(name)
        between = f"{form(ends[0])} to {form(ends[1])}" if ends else units.ABSENT
        rows.append((name, [(form(value), ""), (between, "")]))
    return rows


def _loss(value: float) -> str:
    return units.fixed(value, 4)


def _predicted(rows: Sequence[Mapping[str, float]]) -> list[Row]:
    found = []
    for row in rows:
        model = {name: value for name, value in row.items() if name not in ENDS}
        loss, low, high = (_loss(row[name]) for name in ENDS)
        between = f"{low} to {high}"
        found.append((_in_words(model), [(loss, ""), (between, "")]))
    return found
