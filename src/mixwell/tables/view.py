"""What the report of a fit shows: plain text, tables as rows of text, charts as `Markup`; empty where absent."""

from __future__ import annotations

import math
import re
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from markupsafe import Markup

from mixwell.core import machine, units
from mixwell.report import plots
from mixwell.report.page import facts as run_facts
from mixwell.report.page import machine as run_machine
from mixwell.tables import charts
from mixwell.tables.columns import CATEGORY, COUNT, NUMERIC, SKIP, decode, numbers, resolution
from mixwell.tables.describe import Profile, gap, normal, profiles, radius, stands_out, tail_shares, telling_pairs
from mixwell.tables.model import FittedMixture
from mixwell.tables.reading import Table
from mixwell.tables.search import CRITERIA, FAMILIES, WORDS, Candidate

if TYPE_CHECKING:
    import pandas

TITLES = {"components": "Components", "pairs": "Most telling pairs", "against": "Beside the known groups",
          "choice": "Choice", "certainty": "Certainty", "outliers": "Outliers", "samples": "Samples beside the data",
          "columns": "Columns", "machine": "Machine and versions"}
KIND_WORDS = {NUMERIC: ("number", "numbers"), COUNT: ("count", "counts"), CATEGORY: ("category", "categories"),
              SKIP: ("left out", "left out")}  # of one column and of several
CERTAIN = (0.99, 0.95, 0.8, 0.5)
SAMPLES = 20_000
MOST_COLUMNS, MOST_CATEGORIES, MOST_GROUPS, OUTLIERS = 24, 8, 20, 10
CHOSEN = "chosen"  # the mark in the chart of the choice
RARE = 0.001  # of the model's own draws
EVIDENCE = ((2, "too little to tell them apart"), (6, "some evidence for the choice"), (10, "strong evidence for it"),
            (math.inf, "very strong evidence for the choice"))  # Kass, Raftery (1995), on twice the log Bayes factor


def contents(fitted: FittedMixture, table: Table, x_ND: np.ndarray, labels: pandas.DataFrame, *, against: str | None,
             started: datetime, seconds: float) -> dict[str, Any]:
    """Everything the template shows."""
    described = profiles(fitted, x_ND)
    resp_NK = labels[[f"probability_{k + 1}" for k in range(fitted.n_components)]].to_numpy()
    share_N, score_N = tail_shares(fitted, x_ND)
    draws_SD, draw_labels_S = fitted.draw(SAMPLES, fitted.seed + 1)
    computer, begun = machine.describe(torch.get_num_threads()), started.isoformat()
    beside = samples(fitted, x_ND, draws_SD)
    sections: dict[str, Any] = {
        "columns": columns(fitted, table), "choice": choice(fitted), "components": components(fitted, described),
        "pairs": pairs(fitted, x_ND, resp_NK.argmax(1), draws_SD, draw_labels_S),
        "against": compared(table, against, resp_NK.argmax(1), fitted.n_components),
        "certainty": certainty(resp_NK, table),
        "outliers": outliers(fitted, table, x_ND, labels, share_N, score_N, described), "samples": beside,
        "machine": run_machine(computer, {}, str(fitted.seed), begun, {"time in all stages": seconds})}
    return {"title": f"{fitted.source}: a mixture of {units.counted(fitted.n_components, 'component')}",
            "facts": run_facts(computer, begun, seconds), "lead": lead(fitted),
            "points": summary(fitted, described, resp_NK, share_N, beside), "warning": warning(fitted),
            "notes": fitted.choice.notes, "toc": [(name, title) for name, title in TITLES.items() if sections[name]],
            "criterion": _criterion(fitted), "titles": TITLES, "rare": units.percent(RARE, 1), **sections}


def _criterion(fitted: FittedMixture) -> str:
    return CRITERIA[fitted.choice.criterion]


def lead(fitted: FittedMixture) -> str:
    """The answer in one sentence."""
    rows, K = units.whole(fitted.rows), fitted.n_components
    of_family = f" ({FAMILIES[fitted.family]})" if fitted.family in FAMILIES else ""
    if K == 1:
        if max(c.n_components for c in fitted.choice.candidates) == 1:
            return f"One component{of_family} describes the {rows} rows of {fitted.source}; more were not tried."
        return (f"One component{of_family} describes the {rows} rows of {fitted.source} best: the columns show no "
                "separate groups.")
    return f"The {rows} rows of {fitted.source} are described best by {K} components{of_family}."


def warning(fitted: FittedMixture) -> str:
    """What a reader must know before the rest."""
    chosen = fitted.choice
    if chosen.stopped:
        return (f"The search was stopped after {len(chosen.candidates)} of {chosen.planned} fits; this is the best of "
                "those.")
    return "" if chosen.best.converged else "The chosen fit did not converge; its numbers would still move a little."


def summary(fitted: FittedMixture, described: list[Profile], resp_NK: np.ndarray, share_N: np.ndarray,
            beside: dict[str, Any]) -> list[str]:
    """Plain sentences: each component, how sure the labels are, how odd the oddest rows, where the model is off."""
    lines = []
    if fitted.n_components > 1:
        lines = [f"Component {k + 1} ({units.percent(w, 0)} of rows): {', '.join(_traits(described, k))}."
                 for k, w in enumerate(fitted.estimator.weights_)]
        sure = float((resp_NK.max(1) >= 0.95).mean())
        lines.append(f"{units.percent(sure, 0)} of the rows belong to their component with a probability of at least "
                     f"95{units.THIN}%.")
    lines.append(unusual(share_N))
    off = beside["off"]
    lines.append("The model's samples follow the data in every column as closely as chance allows." if not off else
                 f"The model's samples differ from the data by more than chance in {_listed(off)}.")
    return lines


def unusual(share_N: np.ndarray) -> str:
    """How many rows are odd beyond chance, in a sentence; the report says under the outliers what that means."""
    count, expected = int((share_N < RARE).sum()), RARE * len(share_N)
    if not count:
        return "No unusual rows."
    chance = f"about {units.whole(expected)}" if expected >= 1 else "less than one"
    return f"{units.counted(count, 'unusual row')}, where chance would give {chance}."


def _listed(names: list[str], most: int = 5) -> str:
    if len(names) > most:
        return f"{', '.join(names[:most])} and {units.counted(len(names) - most, 'other column')}"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _traits(described: list[Profile], k: int) -> list[str]:
    """The up to three columns in which a component differs most from all rows."""
    found = []
    for p in described:
        if p.column.kind == CATEGORY:
            c = int(np.abs(p.contrast_K[k]).argmax())
            found.append((abs(p.contrast_K[k, c]), f"{p.column.name} is {p.column.categories[c]} in "
                          f"{units.percent(p.shares_KC[k, c], 0)} ({units.percent(p.overall[c], 0)} of all rows)"))
        else:
            way = "high" if p.contrast_K[k] > 0 else "low"
            found.append((abs(p.contrast_K[k]), f"{way} {p.column.name} "
                          f"({pair(p.mean_K[k], p.spread_K[k])[0]}, all rows {pair(p.overall, p.spread_K[k])[0]})"))
    found.sort(key=lambda entry: -entry[0])
    clear = [words for size, words in found[:3] if size >= 0.3]
    return clear or ["close to the average of all rows"]


def pair(mean: float, spread: float) -> tuple[str, str]:
    """A mean and its spread with the decimals that the spread's second digit sets."""
    if not (math.isfinite(mean) and math.isfinite(spread)) or spread <= 0 or not 1e-4 < spread < 1e6:
        return units.number(mean), units.number(spread, 2)
    decimals = max(0, 1 - math.floor(math.log10(spread)))
    form = units.whole if decimals == 0 else lambda v: units.fixed(v, decimals)
    return form(round(float(mean), decimals) + 0.0), form(float(spread))  # + 0.0 turns -0.0 into 0.0


def columns(fitted: FittedMixture, table: Table) -> list[list[str]]:
    """Name, kind, what is in it, missing values, remark."""
    rows = []
    for c in fitted.columns:
        detail = ""
        if c.kind == CATEGORY:
            detail = ", ".join(c.categories[:MOST_CATEGORIES]) + (" …" if len(c.categories) > MOST_CATEGORIES else "")
        elif c.kind != SKIP:
            seen = numbers(table, c.name, table.frame[c.name])
            detail = f"{_value(np.nanmin(seen))} to {_value(np.nanmax(seen))}"
        rows.append([c.name, KIND_WORDS[c.kind][0], detail, units.whole(c.missing) if c.missing else "", c.note])
    return rows


def _value(value: float) -> str:
    """A single value as it stands in the data."""
    return f"{value:.6g}".replace("-", "−") if 1e-4 <= abs(value) < 1e6 or value == 0 else units.number(value, 4)


def choice(fitted: FittedMixture) -> dict[str, Any]:
    """The criterion against the number of components, a line a family, and each family's best."""
    found, name = fitted.choice, fitted.choice.criterion
    families = list(dict.fromkeys(c.family for c in found.candidates))
    colors = plots.slots(families)
    usable = [c for c in found.candidates if not c.refused]
    lines = [plots.Series(name=WORDS[f], x=[c.n_components for c in usable if c.family == f],
                          y=[getattr(c, name) for c in usable if c.family == f], slot=colors[f]) for f in families]
    best = found.best
    lines.append(plots.Series(name=CHOSEN, x=[best.n_components], y=[getattr(best, name)], slot=colors[best.family]))
    ranked = sorted((min(own, key=lambda c: getattr(c, name)) for f in families
                     if (own := [c for c in usable if c.family == f])), key=lambda c: float(getattr(c, name)))
    refused = sum(bool(c.refused) for c in found.candidates)
    return {"chart": plots.line_chart(lines, x_label="components", y_label=f"{_criterion(fitted)}, smaller is better"),
            "rows": [_choice_row(c, found.best, name) for c in ranked], "verdict": verdict(fitted, usable),
            "refused": f"{units.counted(refused, 'fit')} could not be used: too many parameters for the table, or a "
                       "component with fewer rows than its covariance needs." if refused else ""}


def _choice_row(c: Candidate, best: Candidate, name: str) -> list[str]:
    value = getattr(c, name)
    decimals = 3 if name == "cv" else 1
    behind, option = value - getattr(best, name), c.family if c.family in FAMILIES else ""
    return [WORDS[c.family], option, str(c.n_components), units.fixed(value, decimals), units.fixed(behind, decimals),
            units.whole(c.n_parameters)]


def verdict(fitted: FittedMixture, usable: list[Candidate]) -> str:
    """How far ahead the choice is of the runner-up."""
    name, best = fitted.choice.criterion, fitted.choice.best
    others = [c for c in usable if c != best]
    if not others:
        return ""
    second = min(others, key=lambda c: getattr(c, name))
    ahead = getattr(second, name) - getattr(best, name)
    come = "comes" if second.n_components == 1 else "come"
    words = f"Next {come} {units.counted(second.n_components, 'component')} ({WORDS[second.family]})"
    if name == "cv":
        return (f"{words}, {units.number(ahead, 2)} nats a row behind; the standard error over the folds "
                f"is {units.number(best.cv_error, 2)}.")
    strength = next(text for limit, text in EVIDENCE if ahead < limit)
    scale = f": {strength}" if name in ("bic", "icl") else ""
    return f"{words}, {units.number(ahead, 3)} behind{scale}."


def components(fitted: FittedMixture, described: list[Profile]) -> dict[str, Any]:
    """Head: weights. Rows: (name, sub, cells), each cell (text, spread, colour class, depth)."""
    weights = fitted.estimator.weights_
    rows: list[dict[str, Any]] = []
    for p in described:
        if p.column.kind != CATEGORY:
            cells = [_cell(*pair(m, s), z) for m, s, z in zip(p.mean_K, p.spread_K, p.contrast_K)]
            rows.append({"name": p.column.name, "sub": "", "cells": cells,
                         "overall": pair(p.overall, float(p.spread_K.mean()))[0]})
            continue
        order = np.argsort(-p.overall, kind="stable")[:MOST_CATEGORIES]
        rows += [{"name": p.column.name, "sub": p.column.categories[c],
                  "cells": [_cell(units.percent(s, 0), "", z) for s, z in zip(p.shares_KC[:, c], p.contrast_K[:, c])],
                  "overall": units.percent(p.overall[c], 0)} for c in sorted(order)]
    dofs = getattr(normal(fitted), "dofs_K", None)
    return {"weights": [units.percent(w, 1) for w in weights], "rows": rows,
            "rows_held": [units.whole(w * fitted.rows) for w in weights],
            "dofs": [] if dofs is None else [units.number(d, 2) if d < 100 else "over 100" for d in dofs]}


def _cell(text: str, spread: str, z: float) -> dict[str, str]:
    return {"text": text, "spread": spread, "side": "hot" if z >= 0 else "cold", "depth": f"{min(abs(z) / 2, 1):.3f}"}


def pairs(fitted: FittedMixture, x_ND: np.ndarray, label_N: np.ndarray, draws_SD: np.ndarray,
          draw_labels_S: np.ndarray) -> dict[str, Any]:
    """Scatter of the data with ellipses, and the first pair again with the model's draws in its place."""
    block = normal(fitted)
    chosen = telling_pairs(fitted, x_ND)
    if block is None or not chosen:
        return {}
    maps = [_scatter(fitted, block, chosen[0], x_ND, label_N), _scatter(
        fitted, block, chosen[0], draws_SD[: len(x_ND)], draw_labels_S[: len(x_ND)], like=x_ND)]
    return {"legend": [(k, f"component {k + 1}") for k in range(fitted.n_components)],
            "others": [_scatter(fitted, block, p, x_ND, label_N) for p in chosen[1:]], "first": maps}


def _scatter(fitted: FittedMixture, block: Any, places: tuple[int, int], x_ND: np.ndarray, label_N: np.ndarray,
             like: np.ndarray | None = None) -> Markup:
    i, j = (block.places[p] for p in places)
    a, b = fitted.used[i], fitted.used[j]
    there = ~np.isnan(x_ND[:, [i, j]]).any(1)
    x, y, own = decode(a, x_ND[there, i]), decode(b, x_ND[there, j]), label_N[there]
    frame = x_ND if like is None else like
    scale_2 = np.array([a.scale, b.scale])
    ellipses = []
    for k in range(fitted.n_components):
        mean_2 = block.means_KD[k, list(places)] * scale_2 + (a.center, b.center)
        scale_22 = block.scales_KDD[k][np.ix_(places, places)] * np.outer(scale_2, scale_2)
        dof = None if block.dofs_K is None else float(block.dofs_K[k])
        ellipses += [(*charts.ellipse(mean_2, scale_22, radius(share, dof)), k % plots.NUM_SLOTS)
                     for share in (0.5, 0.9)]
    return charts.scatter([(x[own == k], y[own == k], k % plots.NUM_SLOTS) for k in range(fitted.n_components)],
                          ellipses, x_label=a.name, y_label=b.name, x_range=charts.limits(decode(a, frame[:, i])),
                          y_range=charts.limits(decode(b, frame[:, j])))


def compared(table: Table, against: str | None, label_N: np.ndarray, K: int) -> dict[str, Any]:
    """Components beside a column that the fit did not see."""
    if against is None:
        return {}
    from sklearn.metrics import adjusted_rand_score

    values = table.frame[against].astype(object)
    there = values.notna().to_numpy()
    groups = [str(v) for v in values[there]]
    names = sorted(sorted(set(groups), key=lambda g: (-groups.count(g), g))[:MOST_GROUPS], key=natural)
    counts = np.array([[np.sum((label_N[there] == k) & (np.array(groups) == g)) for k in range(K)] for g in names])
    left_out = len(set(groups)) - len(names)
    shown = f"The {len(names)} largest groups of {len(names) + left_out} are shown." if left_out else ""
    return {"column": against, "shown": shown, "rand": units.fixed(adjusted_rand_score(groups, label_N[there]), 3),
            "map": plots.heat_map(counts.astype(float).tolist(), rows=names, columns=[str(k + 1) for k in range(K)],
                                  low=0.0, center=0.0, high=float(counts.max()), corner=against, form=units.whole)}


def natural(text: str) -> list[Any]:
    """A key that sorts as people do: `2` before `10`, `class_2` before `class_10`, numbers before words."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text.casefold())
    return [(0, float(part), "") if part[:1].isdigit() else (1, 0.0, part) for part in parts if part] + [(1, 0.0, text)]


def certainty(resp_NK: np.ndarray, table: Table) -> dict[str, Any]:
    """How sure the labels are, and the rows that lie between components."""
    if resp_NK.shape[1] == 1:
        return {}
    top_N = resp_NK.max(1)
    bounds = [1.0 + 1e-9, *CERTAIN, 0.0]
    names = [f"{units.percent(CERTAIN[0], 0)} and more",
             *(f"{100 * low:.0f} to {units.percent(high, 0)}" for high, low in pairwise(CERTAIN)),
             f"below {units.percent(CERTAIN[-1], 0)}"]
    shares = [float(((top_N < high) & (top_N >= low)).mean()) for high, low in pairwise(bounds)]
    between = []
    for n in np.argsort(top_N, kind="stable")[:5]:
        first, second = np.argsort(-resp_NK[n])[:2]
        if top_N[n] < 0.95:
            between.append(f"{table.row(int(n))}: {units.percent(resp_NK[n, first], 0)} component {first + 1}, "
                           f"{units.percent(resp_NK[n, second], 0)} component {second + 1}")
    return {"chart": plots.bar_chart(names, {"rows": shares}, form=units.percent), "between": between}


def outliers(fitted: FittedMixture, table: Table, x_ND: np.ndarray, labels: pandas.DataFrame, share_N: np.ndarray,
             score_N: np.ndarray, described: list[Profile]) -> list[list[str]]:
    """The oddest rows: row, log density, draws that are less dense, component, what stands out."""
    rows = []
    for n in np.lexsort((-score_N, share_N))[:OUTLIERS]:
        k = int(labels["component"].iloc[n]) - 1
        odd = [f"{c.name} {v if c.kind == CATEGORY else _value(float(v))}"
               + ("" if c.kind == CATEGORY else f" ({units.fixed(z, 1) if z < 0 else '+' + units.fixed(z, 1)} sd)")
               for c, v, z in stands_out(described, x_ND[n], k)]
        less = f"below {units.percent(1e-3, 1)}" if share_N[n] < 1e-3 else units.percent(share_N[n], 1)
        rows.append([table.row(int(n)), units.fixed(float(labels["log_density"].iloc[n]), 1), less, str(k + 1),
                     ", ".join(odd) or "no single value, but their combination"])
    return rows


def samples(fitted: FittedMixture, x_ND: np.ndarray, draws_SD: np.ndarray) -> dict[str, Any]:
    """Every column's distribution, the data's beside the model's; `off` names those that differ beyond chance."""
    maps: list[dict[str, Any]] = []
    off = []
    for place, column in enumerate(fitted.used):
        own, drawn = x_ND[~np.isnan(x_ND[:, place]), place], draws_SD[:, place]
        if column.kind == NUMERIC:
            drawn = _rounded(drawn, own)
        distance = gap(own, drawn)
        if distance > 1.63 / math.sqrt(len(own)):  # Kolmogorov-Smirnov, 1 in 100
            off.append(column.name)
        if place < MOST_COLUMNS:
            maps.append({"name": column.name, "gap": units.percent(distance), "off": column.name in off,
                         "chart": _beside(column, own, drawn)})
    more = max(0, len(fitted.used) - MOST_COLUMNS)
    words = f"{units.counted(more, 'more column is', 'more columns are')} not drawn." if more else ""
    return {"maps": maps, "off": off, "more": words}


def _rounded(drawn: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Draws on the grid of the data's values, where they lie on one."""
    step = resolution(own)
    return own.min() + np.round((drawn - own.min()) / step) * step if step else drawn


def _beside(column: Any, own: np.ndarray, drawn: np.ndarray) -> Markup:
    if column.kind != CATEGORY:
        return charts.histogram(decode(column, own), decode(column, drawn), label=column.name)
    C = len(column.categories)
    data, model = (np.bincount(v.astype(int), minlength=C) / len(v) for v in (own, drawn))
    shown = np.argsort(-data, kind="stable")[:MOST_CATEGORIES]
    shown.sort()
    return plots.bar_chart([column.categories[c] for c in shown],
                           {"data": data[shown].tolist(), "model": model[shown].tolist()},
                           form=lambda v: units.percent(v, 0), colors={"data": 8, "model": 1})
