"""The report of `mixwell mix`: the weights, what they rest on, and how far to trust them.

`record` gathers all of it as plain data, which `--json` writes; `page` makes HTML of that and of nothing else.

Legend: N runs, D domains, M targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from statistics import median
from typing import Any

import numpy as np
from markupsafe import Markup

from mixwell.core import units
from mixwell.core.errors import MixwellError
from mixwell.data.optimum import Optimum, shares_of
from mixwell.data.predictor import Mixture
from mixwell.data.sureness import (
    Coverage,
    Score,
    coverage,
    cross_validated,
    rank_correlations,
    score,
    weight_intervals,
)
from mixwell.report import findings, plots, scatter
from mixwell.report.findings import Row
from mixwell.report.words import listed

FIRST = 10  # runs of least loss that are listed
AT_CAP = 0.98  # of a cap: a weight from here on is held by it
CHOSEN, EVEN, MEAN = "the choice", "equal shares", "mean of the runs"
TITLES = {"weights": "Weights", "losses": "Losses to expect", "observed": "Predicted and observed",
          "trust": "Predictors and intervals on runs that they did not see", "runs": "The best runs",
          "machine": "Machine and versions"}


def record(fitted: Mixture, errors_NM: np.ndarray, found: Optimum, importance: Mapping[str, float] | None,
           method: str) -> dict[str, Any]:
    """What `mixwell mix` says, as plain data; losses in the unit of the table."""
    runs = fitted.runs
    wanted_M = shares_of(fitted, importance)
    mean_D = runs.weights_ND.mean(0)
    mixtures = {CHOSEN: found.weights_D, EVEN: np.full_like(mean_D, 1 / len(mean_D)), MEAN: mean_D}
    told = {name: _told(fitted, errors_NM, weights_D) for name, weights_D in mixtures.items()}
    return {
        "method": method,
        "runs": len(runs.weights_ND),
        "importance": _named(runs.targets, wanted_M),
        "rank_correlations": rank_correlations(runs, errors_NM),
        "caps": _named(runs.domains, found.caps_D),
        **told[CHOSEN],
        "mixtures": told,
        "least": _named(runs.targets, runs.losses_NM.min(0))}


def _told(fitted: Mixture, errors_NM: np.ndarray, weights_D: np.ndarray) -> dict[str, Any]:
    """Weights, and the losses that are predicted of them with the ends of their intervals."""
    runs = fitted.runs
    (losses_M,) = fitted.predict(weights_D)
    (low_M,), (high_M,) = fitted.interval(weights_D, errors_NM)
    found = {"weights": _named(runs.domains, weights_D)}
    for name, values_M in {"losses": losses_M, "low": low_M, "high": high_M}.items():
        found[name] = _named(runs.targets, values_M)
    return found


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return dict(zip(names, map(float, values)))


def trusted(fitted: Mixture, errors_NM: np.ndarray, found: Optimum, importance: Mapping[str, float] | None,
            method: str, seed: int, pool: Executor | None = None) -> dict[str, Any]:
    """What tells how far `record` can be trusted, as plain data: it takes many fits, in `pool` where there is one."""
    runs = fitted.runs
    low_D, high_D = weight_intervals(fitted, importance, found.caps_D, np.random.default_rng(seed))
    scores = {method: score(runs, errors_NM)}
    for name, one in cross_validated(runs, seed=seed, but=method, pool=pool).items():
        short = name.rpartition(".")[2]
        scores[short] = one
    return {
        "weights_low": _named(runs.domains, low_D),
        "weights_high": _named(runs.domains, high_D),
        "cross_validation": {name: vars(one) for name, one in scores.items()},
        "coverage": _covered(fitted, seed),
        "tried": _tried(runs.weights_ND, runs.losses_NM, errors_NM)}


def _covered(fitted: Mixture, seed: int) -> dict[str, float]:
    """Counts of a `Coverage`; empty where the runs are too few to keep some back."""
    try:
        found = coverage(fitted, np.random.default_rng(seed))
    except MixwellError:
        return {}
    return dict(vars(found))


def _tried(weights_ND: np.ndarray, losses_NM: np.ndarray, errors_NM: np.ndarray) -> dict[str, list[list[float]]]:
    """Every run: its weights, its losses, and what fits that did not see it predict of them."""
    told_NM = losses_NM * np.exp(-errors_NM)
    return {"weights": weights_ND.tolist(), "observed": losses_NM.tolist(), "predicted": told_NM.tolist()}


def page(data: Mapping[str, Any], title: str) -> str:
    """The report as HTML, from what `record` and `trusted` say."""
    sections: dict[str, Any] = {
        "weights": weights(data),
        "chart": _shares(data),
        "losses": losses(data),
        "observed": observed(data),
        "trust": scores(data["cross_validation"]),
        "runs": best_runs(data)}
    domains = units.counted(len(data["weights"]), "domain")
    return findings.page("mix.html", TITLES, sections, title=f"{title}: a mixture of {domains}", lead=lead(data),
                         points=points(data), more=data["method"])


def lead(data: Mapping[str, Any]) -> str:
    """The answer in a sentence."""
    parts = _in_words(data["weights"])
    runs = units.counted(data["runs"], "run")
    return f"By {runs} on other mixtures, the least loss is expected of {listed(parts)}."


def points(data: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the tables, a sentence each."""
    ranks = sorted(data["rank_correlations"].values())
    middle, least = median(ranks), ranks[0]
    said = [f"Of runs that it did not see, {data['method']} orders the losses with a rank correlation of "
            f"{units.fixed(middle, 3)} in the median target and {units.fixed(least, 3)} at least."]
    said.append(_gain(data, EVEN))
    said.append(_gain(data, MEAN))
    held = [name for name, weight in data["weights"].items() if weight > AT_CAP * data["caps"][name]]
    if held:
        said.append(f"Held at the most that it may have: {listed(held)}. Runs beyond, or more text, would tell whether "
                    "more is better.")
    covered = _coverage(data["coverage"])
    return [*said, covered] if covered else said


def _gain(data: Mapping[str, Any], other: str) -> str:
    """How the choice's mean predicted loss stands to that of another mixture."""
    mixtures = data["mixtures"]
    ours = _mean(data, mixtures[CHOSEN]["losses"])
    theirs = _mean(data, mixtures[other]["losses"])
    change = ours / theirs - 1
    own = data["cross_validation"][data["method"]]
    by = units.percent(change, 2, sign=True)
    error = units.percent(own["error"], 2)
    sentence = f"Against {other} the mean loss is expected to change by {by}"
    if abs(change) < own["error"]:
        return f"{sentence}, less than the predictor's own error of {error}: as good as level."
    return f"{sentence}; the predictor's own error is {error}."


def _mean(data: Mapping[str, Any], losses: Mapping[str, float]) -> float:
    """The mean loss that was minimised."""
    total = 0.0
    for name, share in data["importance"].items():
        total += share * losses[name]
    return total


def _coverage(counts: Mapping[str, float]) -> str:
    if not counts:
        return ""
    found = Coverage(int(counts["inside"]), int(counts["tried"]), counts["level"])
    promised = units.percent(found.level, 0)
    held = units.percent(found.share, 0)
    return (f"Intervals that promise {promised} held {found.inside} of {found.tried} losses ({held}) of runs that were "
            "kept out of the fit and of the intervals.")


def weights(data: Mapping[str, Any]) -> list[Row]:
    """Domain: chosen weight with its interval, mean of the runs, the most it may have."""
    rows = []
    for name, weight in data["weights"].items():
        low = units.fixed(data["weights_low"][name], 3)
        high = units.fixed(data["weights_high"][name], 3)
        cap = data["caps"][name]
        mark = "at its cap" if weight > AT_CAP * cap else ""
        mean = data["mixtures"][MEAN]["weights"][name]
        chosen = units.fixed(weight, 3), mark
        between = f"{low} to {high}", ""
        tried = units.fixed(mean, 3), ""
        most = units.fixed(min(1.0, cap), 3), ""
        rows.append((name, [chosen, between, tried, most]))
    return rows


def _shares(data: Mapping[str, Any]) -> Markup:
    series = {}
    for name in (CHOSEN, MEAN):
        own = data["mixtures"][name]["weights"]
        series[name] = list(own.values())
    domains = list(data["weights"])
    return plots.bar_chart(domains, series, form=units.percent)


def losses(data: Mapping[str, Any]) -> list[Row]:
    """Target: loss to expect of the choice, of equal shares, of the runs' mean mixture; the least of all runs."""
    rows = []
    for name, least in data["least"].items():
        cells = [_expected(one, name) for one in data["mixtures"].values()]
        rows.append((name, [*cells, (units.fixed(least, 4), "")]))
    return rows


def _expected(told: Mapping[str, Any], name: str) -> tuple[str, str]:
    parts = [told[side][name] for side in ("losses", "low", "high")]
    loss, low, high = (units.fixed(part, 4) for part in parts)
    return loss, f"{low} to {high}"


def observed(data: Mapping[str, Any]) -> list[tuple[str, str, Markup]]:
    """Target, its rank correlation, and the chart of its losses over what fits that did not see them predict."""
    told_NM = np.array(data["tried"]["predicted"])
    seen_NM = np.array(data["tried"]["observed"])
    colors = plots.slots(list(data["losses"]))
    found = []
    for name, told_N, seen_N in zip(colors, told_NM.T, seen_NM.T):
        rank = data["rank_correlations"][name]
        chart = scatter.agreement(told_N, seen_N, x_label="predicted", y_label="observed", slot=colors[name])
        found.append((name, units.fixed(rank, 3), chart))
    return found


def scores(found: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Predictor, rank correlation and error out of fold, or why there is none."""
    rows = []
    for name, values in found.items():
        one = Score(**values)
        if one.refused:
            rows.append((name, [(units.ABSENT, ""), (units.ABSENT, one.refused)]))
        else:
            rows.append((name, [(units.fixed(one.rank, 3), ""), (units.percent(one.error, 2), "")]))
    return rows


def best_runs(data: Mapping[str, Any]) -> list[Row]:
    """The runs of least mean loss: that, what was predicted of it, and the weights."""
    tried = data["tried"]
    wanted_M = list(data["importance"].values())
    seen_N = np.array(tried["observed"]) @ wanted_M
    told_N = np.array(tried["predicted"]) @ wanted_M
    rows = []
    for place in np.argsort(seen_N, kind="stable")[:FIRST]:
        own = dict(zip(data["weights"], tried["weights"][place]))
        largest = _in_words(own)[:4]
        seen = units.fixed(seen_N[place], 4), ""
        told = units.fixed(told_N[place], 4), ""
        mixture = ", ".join(largest), ""
        rows.append((f"run {place + 1}", [seen, told, mixture]))
    return rows


def _in_words(weights: Mapping[str, float]) -> list[str]:
    """`27 % docs`, the largest first; nothing of a domain that rounds to 0."""
    found = []
    for name in sorted(weights, key=weights.__getitem__, reverse=True):
        share = weights[name]
        if share >= 0.005:
            found.append(f"{units.percent(share, 0)} {name}")
    return found
