"""Sections of the report of a fit: components, pairs, known groups, certainty, outliers, samples.

Plain text, tables as rows of text, charts as `Markup`; empty where there is nothing to show. N rows, D columns,
K components.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from mixwell.core import units
from mixwell.report import plots, scatter
from mixwell.tables import charts
from mixwell.tables.columns import Column, decode
from mixwell.tables.describe import Normal, Profile, gap, normal, radius, stands_out, telling_pairs
from mixwell.tables.kinds import CATEGORY, NUMERIC, resolution
from mixwell.tables.model import FittedMixture
from mixwell.tables.reading import Table
from mixwell.tables.sureness import Sureness

if TYPE_CHECKING:
    import pandas

CERTAIN = (0.99, 0.95, 0.8, 0.5)  # bounds of the largest probability
MOST_COLUMNS, MOST_CATEGORIES, MOST_GROUPS, OUTLIERS, IN_DOUBT = 24, 8, 20, 10, 10


def pair(mean: float, spread: float) -> tuple[str, str]:
    """A mean and its spread with the decimals that the spread's second digit sets."""
    if not (math.isfinite(mean) and 1e-4 < spread < 1e6):
        return units.number(mean), units.number(spread, 2)
    exponent = math.floor(math.log10(spread))
    decimals = max(0, 1 - exponent)
    rounded = round(float(mean), decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
    if decimals == 0:
        return units.whole(rounded), units.whole(float(spread))
    return units.fixed(rounded, decimals), units.fixed(float(spread), decimals)


def value_text(value: float) -> str:
    """A single value as it stands in the data."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:.6g}".replace("-", "−")
    return units.number(value, 4)


def components(fitted: FittedMixture, described: list[Profile], intervals: Sureness) -> dict[str, Any]:
    """Head: weights. Rows: (name, sub, cells), each cell (text, spread, interval, colour class, depth)."""
    weights = fitted.estimator.weights_
    rows: list[dict[str, Any]] = []
    for profile in described:
        ends = intervals.columns.get(profile.column.name)
        rows += _category_rows(profile, ends) if profile.column.kind == CATEGORY else [_number_row(profile, ends)]
    sure = [] if intervals.weights_2K is None else [_shares_between(ends_2) for ends_2 in intervals.weights_2K.T]
    dofs = getattr(normal(fitted), "dofs_K", None)
    return {
        "weights": [units.percent(weight, 1) for weight in weights],
        "sure": sure,
        "why_not": intervals.why_not,
        "rows": rows,
        "rows_held": [units.whole(weight * fitted.total) for weight in weights],
        "dofs": [] if dofs is None else [_dof(dof) for dof in dofs]}


def _dof(value: float) -> str:
    return units.number(value, 2) if value < 100 else "over 100"


def _number_row(profile: Profile, ends_2K: np.ndarray | None) -> dict[str, Any]:
    cells = []
    for k, mean in enumerate(profile.mean_K):
        own, spread = pair(mean, profile.spread_K[k])
        interval = "" if ends_2K is None else _mean_between(ends_2K[:, k])
        cells.append(_cell(own, spread, interval, profile.contrast_K[k]))
    overall, _ = pair(profile.overall, float(profile.spread_K.mean()))
    return {"name": profile.column.name, "sub": "", "cells": cells, "overall": overall}


def _mean_between(ends_2: np.ndarray) -> str:
    """An interval with the decimals that its own width sets; nothing where it is held."""
    low, high = ends_2.tolist()
    if not math.isfinite(low) or not high > low:
        return ""
    (from_text, _), (to_text, _) = pair(low, high - low), pair(high, high - low)
    return f"{from_text} to {to_text}"


def _shares_between(ends_2: np.ndarray) -> str:
    low, high = ends_2.tolist()
    if not math.isfinite(low):
        return ""
    return f"{units.percent(low, 0)} to {units.percent(high, 0)}"


def _category_rows(profile: Profile, ends_2KC: np.ndarray | None) -> list[dict[str, Any]]:
    """A row for each of the most frequent categories."""
    column = profile.column
    frequent = np.argsort(-profile.overall, kind="stable")[:MOST_CATEGORIES]
    rows = []
    for c in sorted(frequent):
        cells = []
        for k, (share, contrast) in enumerate(zip(profile.shares_KC[:, c], profile.contrast_K[:, c])):
            interval = "" if ends_2KC is None else _shares_between(ends_2KC[:, k, c])
            cells.append(_cell(units.percent(share, 0), "", interval, contrast))
        overall = units.percent(profile.overall[c], 0)
        rows.append({"name": column.name, "sub": column.categories[c], "cells": cells, "overall": overall})
    return rows


def _cell(text: str, spread: str, interval: str, contrast: float) -> dict[str, str]:
    """A cell, coloured by how far it is from all rows; two standard deviations take the full colour."""
    side = "hot" if contrast >= 0 else "cold"
    depth = min(abs(contrast) / 2, 1)
    return {"text": text, "spread": spread, "interval": interval, "side": side, "depth": f"{depth:.3f}"}


def pairs(fitted: FittedMixture, x_ND: np.ndarray, label_N: np.ndarray, draws_SD: np.ndarray,
          draw_labels_S: np.ndarray) -> dict[str, Any]:
    """Scatter of the data with ellipses, and the first pair again with the model's draws in its place."""
    block = normal(fitted)
    chosen = telling_pairs(fitted, x_ND)
    if block is None or not chosen:
        return {}
    N = len(x_ND)
    first, *others = chosen
    data = _scatter(fitted, block, first, x_ND, label_N)
    drawn = _scatter(fitted, block, first, draws_SD[:N], draw_labels_S[:N], like=x_ND)
    legend = [(k, f"component {k + 1}") for k in range(fitted.n_components)]
    charts = [_scatter(fitted, block, places, x_ND, label_N) for places in others]
    return {"legend": legend, "others": charts, "first": [data, drawn]}


def _scatter(fitted: FittedMixture, block: Normal, places: tuple[int, int], x_ND: np.ndarray, label_N: np.ndarray,
             like: np.ndarray | None = None) -> Markup:
    """Rows in a colour of their component, and its ellipses; `like`: the rows that set the axes, where it is others."""
    own = [block.places[place] for place in places]
    across, up = [fitted.used[place] for place in own]
    pair_N2 = x_ND[:, own]
    seen_N = ~np.isnan(pair_N2).any(1)
    x = decode(across, pair_N2[seen_N, 0])
    y = decode(up, pair_N2[seen_N, 1])
    clouds, ellipses = [], []
    for k in range(fitted.n_components):
        slot = k % plots.NUM_SLOTS
        mine = label_N[seen_N] == k
        clouds.append((x[mine], y[mine], slot))
        lines = _ellipses(block, k, places, (across, up))
        ellipses += [(*line, slot) for line in lines]
    frame_N2 = pair_N2 if like is None else like[:, own]
    x_range = scatter.limits(decode(across, frame_N2[:, 0]))
    y_range = scatter.limits(decode(up, frame_N2[:, 1]))
    return scatter.scatter(clouds, ellipses, x_label=across.name, y_label=up.name, x_range=x_range, y_range=y_range)


def _ellipses(block: Normal, k: int, places: tuple[int, int],
              pair_of: tuple[Column, Column]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lines that hold half and nine tenths of component k, in the data's own units."""
    unit_2 = np.array([column.scale for column in pair_of])
    center_2 = np.array([column.center for column in pair_of])
    mean_2 = block.means_KD[k, list(places)]
    scale_22 = block.scales_KDD[k][np.ix_(places, places)]
    own_mean_2 = mean_2 * unit_2 + center_2
    own_scale_22 = scale_22 * np.outer(unit_2, unit_2)
    dof = None if block.dofs_K is None else float(block.dofs_K[k])
    radii = [radius(share, dof) for share in (0.5, 0.9)]
    return [charts.ellipse(own_mean_2, own_scale_22, r) for r in radii]


def compared(table: Table, against: str | None, label_N: np.ndarray, K: int) -> dict[str, Any]:
    """Components beside a column that the fit did not see."""
    if against is None:
        return {}
    from sklearn.metrics import adjusted_rand_score

    values = table.frame[against].astype(object)
    there_N = values.notna().to_numpy()
    groups = [str(value) for value in values[there_N]]
    label_N = label_N[there_N]
    counts = Counter(groups)
    largest = sorted(counts, key=lambda group: (-counts[group], group))[:MOST_GROUPS]
    names = sorted(largest, key=natural)
    table_GK = np.zeros((len(names), K))
    for group, label in zip(groups, label_N):
        if group in largest:
            table_GK[names.index(group), label] += 1
    numbered = [str(k + 1) for k in range(K)]
    cells = plots.heat_map(table_GK.tolist(), rows=names, columns=numbered, low=0.0, center=0.0,
                           high=float(table_GK.max()), corner=against, form=units.whole)
    rand = units.fixed(adjusted_rand_score(groups, label_N), 3)
    return {"column": against, "shown": _largest(len(names), len(counts)), "rand": rand, "map": cells}


def _largest(shown: int, count: int) -> str:
    if shown == count:
        return ""
    return f"The {shown} largest groups of {count} are shown."


def natural(text: str) -> list[Any]:
    """A key that sorts as people do: `2` before `10`, `class_2` before `class_10`, numbers before words."""
    key: list[Any] = []
    for part in re.split(r"(\d+(?:\.\d+)?)", text.casefold()):
        if part[:1].isdigit():
            key.append((0, float(part), ""))
        elif part:
            key.append((1, 0.0, part))
    key.append((1, 0.0, text))
    return key


def certainty(resp_NK: np.ndarray, table: Table) -> dict[str, Any]:
    """How sure the labels are, and the rows that lie between components."""
    if resp_NK.shape[1] == 1:
        return {}
    top_N = resp_NK.max(1)
    bounds = [1.0 + 1e-9, *CERTAIN, 0.0]
    shares = []
    for high, low in pairwise(bounds):
        inside_N = (top_N < high) & (top_N >= low)
        shares.append(float(inside_N.mean()))
    between = []
    order_N = np.argsort(top_N, kind="stable")
    for n in order_N[:IN_DOUBT]:
        if top_N[n] < 0.95:
            row = table.row(int(n))
            between.append(f"{row}: {_between(resp_NK[n])}")
    chart = plots.bar_chart(_certainties(), {"rows": shares}, form=units.percent)
    more = int((top_N < 0.95).sum()) - len(between)
    return {"chart": chart, "between": between, "more": units.counted(more, "further row") if more > 0 else ""}


def telling(fitted: FittedMixture, shares_D: np.ndarray) -> dict[str, Any]:
    """The columns that tell the components apart, most telling first, as bars."""
    if fitted.n_components == 1:
        return {}
    order = np.argsort(-shares_D, kind="stable")[:MOST_COLUMNS]
    names = [fitted.used[place].name for place in order]
    values = [float(shares_D[place]) for place in order]
    return {"chart": plots.bar_chart(names, {"share": values}, form=_whole_percent),
            "more": _not_drawn(len(shares_D) - len(order))}


def _certainties() -> list[str]:
    """Names of the ranges of the largest probability, from the highest."""
    texts = [units.percent(bound, 0) for bound in CERTAIN]
    sign = f"{units.THIN}%"
    names = [f"{texts[0]} and more"]
    for high, low in pairwise(texts):
        names.append(f"{low.removesuffix(sign)} to {high}")  # one sign serves both ends
    names.append(f"below {texts[-1]}")
    return names


def _between(resp_K: np.ndarray) -> str:
    """`62 % component 2, 37 % component 1`"""
    parts = []
    for k in np.argsort(-resp_K)[:2]:
        parts.append(f"{units.percent(resp_K[k], 0)} component {k + 1}")
    return ", ".join(parts)


def outliers(fitted: FittedMixture, table: Table, x_ND: np.ndarray, labels: pandas.DataFrame, share_N: np.ndarray,
             score_N: np.ndarray, described: list[Profile]) -> list[list[str]]:
    """The oddest rows: row, log density, draws that are less dense, component, what stands out."""
    rows = []
    for n in np.lexsort((-score_N, share_N))[:OUTLIERS]:
        label = labels.iloc[n]
        component = int(label["component"])
        row = [table.row(int(n))]
        row.append(units.fixed(float(label["log_density"]), 1))
        row.append(_less_dense(share_N[n]))
        row.append(str(component))
        odd = [_oddity(*one) for one in stands_out(described, x_ND[n], component - 1)]
        row.append(", ".join(odd) or "no single value, but their combination")
        rows.append(row)
    return rows


def _oddity(column: Column, value: Any, deviations: float) -> str:
    """`town Kiel`, `income 9000 (+4.1 sd)`"""
    if column.kind == CATEGORY:
        return f"{column.name} {value}"
    shown = value_text(float(value))
    distance = units.fixed(deviations, 1)
    sign = "" if deviations < 0 else "+"
    return f"{column.name} {shown} ({sign}{distance} sd)"


def _less_dense(share: float) -> str:
    """The share of draws that are less dense; a few thousand of them cannot tell how small a small one is."""
    if share < 1e-3:
        return f"below {units.percent(1e-3, 1)}"
    return units.percent(share, 1)


def samples(fitted: FittedMixture, x_ND: np.ndarray, draws_SD: np.ndarray) -> dict[str, Any]:
    """Every column's distribution, the data's beside the model's; `off` names those that differ beyond chance."""
    maps: list[dict[str, Any]] = []
    off = []
    for place, column in enumerate(fitted.used):
        x_N = x_ND[:, place]
        own, drawn = x_N[~np.isnan(x_N)], draws_SD[:, place]
        if column.kind == NUMERIC:
            drawn = _rounded(drawn, own)
        distance = gap(own, drawn)
        differs = distance > 1.63 / math.sqrt(len(own))  # Kolmogorov-Smirnov, 1 in 100
        if differs:
            off.append(column.name)
        if place < MOST_COLUMNS:
            chart = _beside(column, own, drawn)
            maps.append({"name": column.name, "gap": units.percent(distance), "off": differs, "chart": chart})
    return {"maps": maps, "off": off, "more": _not_drawn(len(fitted.used) - MOST_COLUMNS)}


def _not_drawn(count: int) -> str:
    if count <= 0:
        return ""
    return f"{units.counted(count, 'more column is', 'more columns are')} not drawn."


def _rounded(drawn: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Draws on the grid of the data's values, where they lie on one."""
    step = resolution(own)
    if not step:
        return drawn
    least = own.min()
    steps = np.round((drawn - least) / step)
    return least + steps * step


def _beside(column: Column, own: np.ndarray, drawn: np.ndarray) -> Markup:
    if column.kind != CATEGORY:
        return charts.histogram(decode(column, own), decode(column, drawn), label=column.name)
    C = len(column.categories)
    data_C = np.bincount(own.astype(int), minlength=C) / len(own)
    model_C = np.bincount(drawn.astype(int), minlength=C) / len(drawn)
    frequent = np.argsort(-data_C, kind="stable")[:MOST_CATEGORIES]
    shown = np.sort(frequent)
    names = [column.categories[c] for c in shown]
    bars = {"data": data_C[shown].tolist(), "model": model_C[shown].tolist()}
    return plots.bar_chart(names, bars, form=_whole_percent, colors={"data": 8, "model": 1})


def _whole_percent(share: float) -> str:
    return units.percent(share, 0)
