"""What the report says, as plain data for programs: `report.json` beside `report.html`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mixwell import __version__
from mixwell.tables.candidates import Candidate, Choice
from mixwell.tables.columns import Column
from mixwell.tables.describe import Profile, profiles
from mixwell.tables.kinds import CATEGORY, SKIP
from mixwell.tables.model import FittedMixture, plain
from mixwell.tables.preparing import Prepared
from mixwell.tables.repeat import citation, command, snippet
from mixwell.tables.sureness import LEVEL, Sureness
from mixwell.tables.telling import information

if TYPE_CHECKING:
    import pandas

DOUBT = 0.95  # largest probability below which a row is in doubt
MOST_DOUBTED = 100


def record(fitted: FittedMixture, ready: Prepared, x_ND: np.ndarray, labels: pandas.DataFrame,
           intervals: Sureness) -> dict[str, Any]:
    """How many groups, how sure, what each is like, which rows are in doubt, which columns tell, what was done."""
    described = profiles(fitted, x_ND)
    found = fitted.choice
    content = {
        "mixwell": __version__,
        "source": fitted.source,
        "rows": fitted.rows,
        "weights": fitted.weights,
        "notes": [*ready.table.notes, *found.notes],
        "n_components": fitted.n_components,
        "choice": _choice(found),
        "components": [_component(fitted, described, intervals, k) for k in range(fitted.n_components)],
        "intervals": {"level": LEVEL, "by": "information matrix", "why_not": intervals.why_not},
        "telling": _telling(fitted, x_ND),
        "in_doubt": _in_doubt(labels),
        "columns": [_column(column, ready) for column in fitted.columns],
        "repeat": {"command": command(ready.asked), "python": snippet(ready.asked)},
        "cite": citation(fitted)}
    return plain(content)


def _choice(found: Choice) -> dict[str, Any]:
    return {
        "criterion": found.criterion,
        "smaller_is_better": True,
        "at_edge": found.at_edge,
        "stopped": found.stopped,
        "rows_searched": found.searched,
        "best": _candidate(found.best),
        "on_all_rows": _candidate(found.final) if found.final else None,
        "candidates": [_candidate(candidate) for candidate in found.candidates]}


def _candidate(candidate: Candidate) -> dict[str, Any]:
    """A fit, its criteria in the data's own units, and BIC as mclust signs it."""
    return {"family": candidate.family, "counts": candidate.counts, "n_components": candidate.n_components,
            "log_likelihood": candidate.log_likelihood, "n_parameters": candidate.n_parameters, "bic": candidate.bic,
            "bic_mclust": -candidate.bic, "icl": candidate.icl, "aic": candidate.aic, "cv": candidate.cv,
            "converged": candidate.converged, "refused": candidate.refused}


def _component(fitted: FittedMixture, described: list[Profile], intervals: Sureness, k: int) -> dict[str, Any]:
    """A component in the data's own units, with intervals."""
    weight = float(fitted.estimator.weights_[k])
    columns = {}
    for profile in described:
        name = profile.column.name
        columns[name] = _profile(profile, intervals.columns.get(name), k)
    weight_2 = _ends(intervals.weights_2K, k)
    return {"component": k + 1, "weight": weight, "weight_interval": weight_2, "rows": weight * fitted.total,
            "columns": columns}


def _profile(profile: Profile, ends: np.ndarray | None, k: int) -> dict[str, Any]:
    own = _ends(ends, k)
    if profile.column.kind != CATEGORY:
        mean, spread = float(profile.mean_K[k]), float(profile.spread_K[k])
        return {"mean": mean, "mean_interval": own, "standard_deviation": spread}
    names = profile.column.categories
    shares_C = profile.shares_KC[k].tolist()
    shares_interval = dict(zip(names, zip(*own))) if own else {}
    return {"shares": dict(zip(names, shares_C)), "shares_interval": shares_interval}


def _ends(ends: np.ndarray | None, k: int) -> list[Any]:
    """Low and high of component k; nothing where there is no interval."""
    if ends is None:
        return []
    return ends[:, k].tolist()


def _telling(fitted: FittedMixture, x_ND: np.ndarray) -> dict[str, float]:
    """Share of the doubt about a row's component that each column alone removes, most telling first."""
    shares_D = information(fitted, x_ND)
    order = np.argsort(-shares_D, kind="stable")
    return {fitted.used[place].name: float(shares_D[place]) for place in order}


def _in_doubt(labels: pandas.DataFrame) -> dict[str, Any]:
    """How many rows have no component with 95 %, and the most doubtful of them."""
    probability_NK = labels.filter(like="probability_")
    top_N = probability_NK.max(axis=1)
    doubted = top_N[top_N < DOUBT].sort_values(kind="stable")
    rows = []
    for n, top in doubted.head(MOST_DOUBTED).items():
        label = labels.loc[n]
        row = {"row": int(label["row"]), "component": int(label["component"]), "probability": float(top)}
        rows.append(row)
    return {"below": DOUBT, "count": len(doubted), "rows": rows}


def _column(column: Column, ready: Prepared) -> dict[str, Any]:
    reading = ready.table.readings.get(column.name)
    kind = "left out" if column.kind == SKIP else column.kind
    examples = list(reading.examples) if reading else []
    marks = dict(reading.missing) if reading else {}
    return {"name": column.name, "kind": kind, "why": column.why, "note": column.note, "missing": column.missing,
            "read_as_missing": marks, "examples": examples}
