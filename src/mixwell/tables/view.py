"""What the report of a fit shows: plain text, tables as rows of text, charts as `Markup`; empty where absent."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from markupsafe import Markup

from mixwell.core import machine, units
from mixwell.report import plots
from mixwell.report.page import facts as run_facts
from mixwell.report.page import machine as run_machine
from mixwell.report.words import listed
from mixwell.tables.candidates import CRITERIA, DISCRETE, Candidate, Choice
from mixwell.tables.columns import Column, numbers
from mixwell.tables.describe import Profile, profiles, tail_shares
from mixwell.tables.kinds import CATEGORY, COUNT, NUMERIC, SKIP
from mixwell.tables.model import FittedMixture
from mixwell.tables.preparing import Prepared
from mixwell.tables.repeat import citation, command, snippet
from mixwell.tables.sections import (
    MOST_CATEGORIES,
    certainty,
    compared,
    components,
    outliers,
    pair,
    pairs,
    samples,
    telling,
    value_text,
)
from mixwell.tables.sureness import Sureness
from mixwell.tables.telling import information

if TYPE_CHECKING:
    import pandas

    from mixwell.tables.reading import Table

TITLES = {"components": "Components", "telling": "Columns that tell them apart", "pairs": "Most telling pairs",
          "against": "Beside the known groups", "choice": "Choice", "certainty": "Certainty and rows in doubt",
          "outliers": "Outliers", "samples": "Samples beside the data",
          "columns": "Columns", "repeat": "Repeat and cite", "machine": "Machine and versions"}
KIND_WORDS = {NUMERIC: ("number", "numbers"), COUNT: ("count", "counts"), CATEGORY: ("category", "categories"),
              SKIP: ("left out", "left out")}  # of one column and of several
SAMPLES = 20_000
CHOSEN = "chosen"  # the mark in the chart of the choice
RARE = 0.001  # of the model's own draws
EVIDENCE = ((2, "too little to tell them apart"), (6, "some evidence for the choice"), (10, "strong evidence for it"),
            (math.inf, "very strong evidence for the choice"))  # Kass, Raftery (1995), on twice the log Bayes factor


def contents(fitted: FittedMixture, ready: Prepared, x_ND: np.ndarray, labels: pandas.DataFrame, intervals: Sureness,
             *, started: datetime, seconds: float) -> dict[str, Any]:
    """Everything the template shows."""
    K, table = fitted.n_components, ready.table
    shares_D = information(fitted, x_ND)
    described = profiles(fitted, x_ND)
    resp_NK = labels[[f"probability_{k + 1}" for k in range(K)]].to_numpy()
    label_N = resp_NK.argmax(1)
    share_N, score_N = tail_shares(fitted, x_ND)
    draws_SD, draw_labels_S = fitted.draw(SAMPLES, fitted.seed + 1)
    computer = machine.describe(torch.get_num_threads())
    begun = started.isoformat()
    beside = samples(fitted, x_ND, draws_SD)
    sections: dict[str, Any] = {
        "columns": columns(fitted, ready),
        "telling": telling(fitted, shares_D),
        "choice": choice(fitted),
        "components": components(fitted, described, intervals),
        "pairs": pairs(fitted, x_ND, label_N, draws_SD, draw_labels_S),
        "against": compared(table, ready.against, label_N, K),
        "certainty": certainty(resp_NK, table),
        "outliers": outliers(fitted, table, x_ND, labels, share_N, score_N, described),
        "samples": beside,
        "repeat": {"command": command(ready.asked), "snippet": snippet(ready.asked), "citation": citation(fitted)},
        "machine": run_machine(computer, {}, str(fitted.seed), begun, {"time in all stages": seconds})}
    return {
        "title": f"{fitted.source}: a mixture of {units.counted(K, 'component')}",
        "facts": run_facts(computer, begun, seconds),
        "lead": lead(fitted),
        "points": [*sure(fitted, shares_D), *summary(fitted, described, resp_NK, share_N, beside["off"])],
        "warning": warning(fitted),
        "notes": [*fitted.choice.notes, *file_notes(fitted, ready)],
        "toc": [(name, title) for name, title in TITLES.items() if sections[name]],
        "criterion": _criterion(fitted),
        "titles": TITLES,
        "rare": units.percent(RARE, 1),
        **sections}


def _criterion(fitted: FittedMixture) -> str:
    return CRITERIA[fitted.choice.criterion]


def lead(fitted: FittedMixture) -> str:
    """The answer in one sentence."""
    count = units.whole(fitted.rows)
    rows = f"{count} rows of {fitted.source}"
    best = fitted.choice.best
    named = best.family != DISCRETE or best.counts
    of_family = f" ({best.words})" if named else ""
    K = fitted.n_components
    if K > 1:
        return f"The {rows} are described best by {K} components{of_family}."
    one = f"One component{of_family} describes the {rows}"
    tried = {candidate.n_components for candidate in fitted.choice.candidates}
    if max(tried) == 1:
        return f"{one}; more were not tried."
    return f"{one} best: the columns show no separate groups."


def sure(fitted: FittedMixture, shares_D: np.ndarray) -> list[str]:
    """How sure the number of components is, and which columns tell them apart, in a sentence each."""
    lines = [line for line in (verdict(fitted, fitted.choice.usable),) if line]
    if fitted.n_components == 1:
        return lines
    order = np.argsort(-shares_D, kind="stable")[:3]
    best = [f"{fitted.used[d].name} ({units.percent(float(shares_D[d]), 0)})" for d in order if shares_D[d] >= 0.05]
    if best:
        lines.append(f"What tells the components apart most, each alone: {listed(best)} of the doubt removed.")
    return lines


def file_notes(fitted: FittedMixture, ready: Prepared) -> list[str]:
    """What was found of the file, and what its weights are."""
    notes = []
    if ready.table.notes:
        notes.append(f"The file: {'; '.join(ready.table.notes)}.")
    if fitted.weights:
        notes.append(f"Weights {fitted.weights}.")
    return notes


def warning(fitted: FittedMixture) -> str:
    """What a reader must know before the rest."""
    chosen = fitted.choice
    if chosen.stopped:
        return f"The search was stopped after {chosen.done} of {chosen.planned} fits; this is the best of those."
    return "" if chosen.taken.converged else "The chosen fit did not converge; its numbers would still move a little."


def summary(fitted: FittedMixture, described: list[Profile], resp_NK: np.ndarray, share_N: np.ndarray,
            off: list[str]) -> list[str]:
    """Plain sentences: each component, how sure the labels are, how odd the oddest rows, where the model is off."""
    lines = []
    if fitted.n_components > 1:
        for k, weight in enumerate(fitted.estimator.weights_):
            traits = ", ".join(_traits(described, k))
            share = units.percent(weight, 0)
            lines.append(f"Component {k + 1} ({share} of rows): {traits}.")
        sure_N = resp_NK.max(1) >= 0.95
        share = units.percent(float(sure_N.mean()), 0)
        lines.append(f"{share} of the rows belong to their component with a probability of at least 95{units.THIN}%.")
    lines.append(unusual(share_N))
    if off:
        lines.append(f"The model's samples differ from the data by more than chance in {_listed(off)}.")
    else:
        lines.append("The model's samples follow the data in every column as closely as chance allows.")
    return lines


def unusual(share_N: np.ndarray) -> str:
    """How many rows are odd beyond chance, in a sentence; the report says under the outliers what that means."""
    count = int((share_N < RARE).sum())
    if not count:
        return "No unusual rows."
    expected = RARE * len(share_N)
    chance = f"about {units.whole(expected)}" if expected >= 1 else "less than one"
    rows = units.counted(count, "unusual row")
    return f"{rows}, where chance would give {chance}."


def _listed(names: list[str], most: int = 5) -> str:
    """The names, or the first of them and how many more."""
    if len(names) <= most:
        return listed(names)
    others = units.counted(len(names) - most, "other column")
    return f"{', '.join(names[:most])} and {others}"


def _traits(described: list[Profile], k: int) -> list[str]:
    """The up to three columns in which a component differs most from all rows."""
    found = [_trait(profile, k) for profile in described]
    found.sort(key=lambda trait: -trait[0])
    clear = [words for size, words in found[:3] if size >= 0.3]
    return clear or ["close to the average of all rows"]


def _trait(profile: Profile, k: int) -> tuple[float, str]:
    """By how many standard deviations of all rows component k differs in a column, and the difference in words."""
    column, contrast = profile.column, profile.contrast_K[k]
    if column.kind == CATEGORY:
        c = int(np.abs(contrast).argmax())
        category = column.categories[c]
        own = units.percent(profile.shares_KC[k, c], 0)
        every = units.percent(profile.overall[c], 0)
        return abs(contrast[c]), f"{column.name} is {category} in {own} ({every} of all rows)"
    way = "high" if contrast > 0 else "low"
    spread = profile.spread_K[k]
    own, _ = pair(profile.mean_K[k], spread)
    every, _ = pair(profile.overall, spread)
    return abs(contrast), f"{way} {column.name} ({own}, all rows {every})"


def columns(fitted: FittedMixture, ready: Prepared) -> list[list[str]]:
    """Name, kind, missing values, why and what was done, what is in it, as it is written."""
    rows = []
    for column in fitted.columns:
        kind, _ = KIND_WORDS[column.kind]
        written, missing = as_written(column, ready.table)
        rows.append([column.name, kind, missing, reasons(column), _content(column, ready.table), written])
    return rows


def reasons(column: Column) -> str:
    """What speaks for a column's kind, and what there is to say of it."""
    parts = (column.why, column.note)
    return "; ".join(part for part in parts if part)


def as_written(column: Column, table: Table) -> tuple[str, str]:
    """Three values as the table writes them, and how many are missing with what stood for them."""
    reading = table.readings.get(column.name)
    examples = " · ".join(map(shortened, reading.examples)) if reading else ""
    if not column.missing:
        return examples, ""
    marks = [mark or "empty" for mark in (reading.missing if reading else ())]
    of_marks = f" ({', '.join(marks[:3])})" if marks else ""
    return examples, f"{units.whole(column.missing)}{of_marks}"


def shortened(text: str, most: int = 16) -> str:
    """A text of bounded length."""
    if len(text) <= most:
        return text
    kept = text[: most - 1]
    return f"{kept}…"


def _content(column: Column, table: Table) -> str:
    """The categories or the range of a column; nothing for one that is left out."""
    if column.kind == SKIP:
        return ""
    if column.kind == CATEGORY:
        more = " …" if len(column.categories) > MOST_CATEGORIES else ""
        return ", ".join(column.categories[:MOST_CATEGORIES]) + more
    seen = numbers(table, column.name, table.frame[column.name])
    least, most = np.nanmin(seen), np.nanmax(seen)
    return f"{value_text(least)} to {value_text(most)}"


def choice(fitted: FittedMixture) -> dict[str, Any]:
    """The criterion against the number of components, a line a family, and each family's best."""
    found = fitted.choice
    usable = found.usable
    best_of: dict[tuple[str, str], Candidate] = {}
    for candidate in sorted(usable, key=found.score):
        best_of.setdefault(candidate.form, candidate)
    return {
        "chart": _choice_chart(fitted, usable),
        "rows": [_choice_row(candidate, found) for candidate in best_of.values()],
        "verdict": verdict(fitted, usable),
        "sign": _sign(found),
        "refused": _refusals(len(found.candidates) - len(usable))}


def _sign(found: Choice) -> str:
    """What the criterion is, so that it can be checked against papers."""
    if found.criterion == "cv":
        return "Held-out log densities are in nats a row, in the data's own units."
    formulas = {"bic": "−2 log L + P log N", "aic": "−2 log L + 2 P", "icl": "BIC plus twice the entropy of the labels"}
    formula = formulas[found.criterion]
    own = f"{CRITERIA[found.criterion]} is {formula} (P parameters), in the data's own units: smaller is better."
    if found.final:
        value = units.fixed(found.score(found.final), 2)
        own = f"{own} Those of the table are of {units.whole(found.searched)} rows; of all rows the choice has {value}."
    if found.criterion == "aic":
        return own
    value = units.fixed(-found.score(found.taken), 2)
    return f"{own} mclust writes it with the other sign, larger is better: {value} for the choice."


def _choice_chart(fitted: FittedMixture, usable: list[Candidate]) -> Markup:
    found, best = fitted.choice, fitted.choice.best
    colors = plots.slots([candidate.words for candidate in found.candidates])
    lines = []
    for words, slot in colors.items():
        own = [candidate for candidate in usable if candidate.words == words]
        x = [candidate.n_components for candidate in own]
        y = [found.score(candidate) for candidate in own]
        lines.append(plots.Series(name=words, x=x, y=y, slot=slot))
    mark = plots.Series(name=CHOSEN, x=[best.n_components], y=[found.score(best)], slot=colors[best.words])
    lines.append(mark)
    return plots.line_chart(lines, x_label="components", y_label=f"{_criterion(fitted)}, smaller is better")


def _refusals(count: int) -> str:
    if not count:
        return ""
    return (f"{units.counted(count, 'fit')} could not be used: too many parameters for the table, or a component with "
            "fewer rows than its covariance needs.")


def _choice_row(candidate: Candidate, found: Choice) -> list[str]:
    """Family, its option, components, score, how far behind the best, parameters."""
    family, value = candidate.family, found.score(candidate)
    option = "" if family == DISCRETE else family
    behind = value - found.score(found.best)
    decimals = 3 if found.criterion == "cv" else 1
    row = [candidate.words, option, str(candidate.n_components)]
    row += [units.fixed(value, decimals), units.fixed(behind, decimals), units.fixed(candidate.log_likelihood, 1)]
    row.append(units.whole(candidate.n_parameters))
    return row


def _edge(found: Choice) -> str:
    """Why the largest number of components is no evidence for as many groups."""
    K = found.best.n_components
    larger = [candidate for candidate in found.candidates if candidate.n_components > K]
    if larger:
        return f"no more than {K} could be fitted to so few rows: this is no evidence for {K} groups."
    return (f"{K} is the largest number tried: this is no evidence for {K} groups. Try more "
            f"(--components 1-{2 * K}), or families that fit the columns better.")


def verdict(fitted: FittedMixture, usable: list[Candidate]) -> str:
    """How far ahead the choice is of the best fit with another number of components, or else of the runner-up."""
    found, best = fitted.choice, fitted.choice.best
    others = [candidate for candidate in usable if candidate.n_components != best.n_components]
    others = others or [candidate for candidate in usable if candidate != best]
    if not others:
        return ""
    second = min(others, key=found.score)
    ahead = found.score(second) - found.score(best)
    come = "comes" if second.n_components == 1 else "come"
    words = f"Next {come} {units.counted(second.n_components, 'component')} ({second.words})"
    if found.criterion == "cv":
        return (f"{words}, {units.number(ahead, 2)} nats a row behind; the standard error over the folds is "
                f"{units.number(best.cv_error, 2)}.")
    behind = f"{words}, {units.number(ahead, 3)} behind"
    if found.criterion == "aic":
        return f"{behind}."
    if found.at_edge:
        return f"{behind}, but {_edge(found)}"
    strength = next(text for limit, text in EVIDENCE if ahead < limit)
    return f"{behind}: {strength}."
