"""A comparison in words and tables: which differences the seeds support, what each variant cost, what failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from mixwell.compare.results import METRIC, Comparison, Result, Trial
from mixwell.core import units
from mixwell.report.records import figure, numbers
from mixwell.report.statistics import LEVEL, Difference
from mixwell.report.training import cell

UNEQUAL = 1.02  # ratio of the dearest to the cheapest token from which compute is not called equal


def title(found: Comparison) -> str:
    """`standard-library by router`"""
    keys = [str(path).rpartition(".")[2] for path in found.record["vary"]]
    return f"{found.record['name']} by {_and(keys)}"


def lead(found: Comparison) -> str:
    """The answer: who is better and who worse than the baseline, and where the seeds cannot tell."""
    base = found.baseline
    scored = [r.name for r in found.ranked]
    if base not in scored:
        return f"The baseline {base} has no result, so there is nothing to hold the others against."
    said = [_side(found, "Better", True), _side(found, "Worse", False)]
    if undecided := _undecided(found):
        said.append(f"No difference from {base} is supported for {_and(undecided)}.")
    if single := [n for n in scored if n in found.differences and found.differences[n].interval.count < 2]:
        said.append(f"One seed cannot tell a difference from luck: nothing is said of {_and(single)} against {base}.")
    if failed := [r.name for r in found.results if not r.trials and r.failures]:
        said.append(f"{_and(failed)} failed.")
    return " ".join(s for s in said if s) or f"Only {base} has a result so far."


def _side(found: Comparison, word: str, gains: bool) -> str:
    """`Better than top_k: hash by 0.0310 (0.0201 to 0.0419) bits per byte.`"""
    names = [r.name for r in found.ranked if (d := found.differences.get(r.name)) and d.supported
             and (d.interval.mean < 0) == gains]
    parts = []
    for name in names:
        i = found.differences[name].interval
        low, high = sorted((-i.high, -i.low) if gains else (i.low, i.high))
        parts.append(f"{name} by {_gap(abs(i.mean))} ({_gap(low)} to {_gap(high)})")
    return f"{word} than {found.baseline}: {_and(parts)} {METRIC}." if parts else ""


def _undecided(found: Comparison) -> list[str]:
    return [r.name for r in found.ranked if (d := found.differences.get(r.name))
            and d.interval.count > 1 and not d.supported]


def notes(found: Comparison) -> list[str]:
    """How it was judged, in short sentences."""
    count = sum(not math.isnan(d.p) for d in found.differences.values())
    said = [f"Measured: mean {METRIC} of held-out text after the stage {found.record['stage']}, lower is better.",
            _budget(found)]
    if count:
        several = f", after Holm's correction for {count} comparisons" if count > 1 else ""
        said.append("Differences are paired by seed (same data in the same order, same draws); intervals are 95 % "
                    f"intervals of Student's t. A difference is called supported where p is below {LEVEL}{several}.")
    if undecided := [found.differences[n].interval for n in _undecided(found)]:
        reach = max(max(abs(i.low), abs(i.high)) for i in undecided)
        said.append(f"Not supported does not mean equal: there, differences up to {_gap(reach)} remain possible; more "
                    "seeds would narrow that.")
    per_token = [_mean(trials, "flops") / tokens for r in found.ranked
                 if (tokens := _mean(trials := list(r.trials.values()), "tokens"))]
    if "flops" not in found.record["budget"] and per_token and max(per_token) > UNEQUAL * min(per_token):
        said.append(f"A token costs from {units.si(min(per_token), 'FLOP')} to {units.si(max(per_token), 'FLOP')}: the "
                    "variants did not have equal compute; --budget flops gives it to them.")
    if not found.one_tokenizer:
        said.append("The variants have different tokenizers: their losses per token are not on one scale, and no "
                    "learning curves are shown; bits per byte are comparable.")
    said.append("Another budget, model size or text may order the variants otherwise.")
    return said


def _budget(found: Comparison) -> str:
    budget = found.record["budget"]
    forms: dict[str, Callable[[Any], str]] = {
        "tokens": lambda v: f"{units.si(v)} tokens", "flops": lambda v: units.si(v, "FLOP"),
        "seconds": lambda v: f"{units.seconds(v)} of training", "bytes": lambda v: f"{units.si(v, 'B')} of weights"}
    parts = [forms[name](value) for name, value in budget.items()]
    return f"Budget of every variant and seed: {_and(parts)}." if parts else "Budget: as the recipe says."


def table(found: Comparison) -> list[dict[str, Any]]:
    """A row for each variant with a result, best first."""
    means = {result.name: result.interval.mean for result in found.ranked}
    return [{**_row(found, result), "best": cell(result.name, means, 4)["best"]} for result in found.ranked]


def _row(found: Comparison, result: Result) -> dict[str, Any]:
    own, d = result.interval, found.differences.get(result.name)
    row = {"name": result.name, "seeds": str(own.count), "mean": units.fixed(own.mean, 4),
           "half": f"± {units.fixed(own.half, 4)}" if own.count > 1 else "", "gap": "", "range": "", "p": "",
           "verdict": "baseline" if result.name == found.baseline else "no pair", "state": "", "aside": ""}
    if d is None:
        return row
    gap = {"gap": _signed(d.interval.mean)}
    if d.interval.count > 1:
        gap |= {"range": f"{_signed(d.interval.low)} to {_signed(d.interval.high)}", "p": _p(d.p_holm)}
    return row | gap | verdict(d)


def verdict(d: Difference) -> dict[str, str]:
    """What the seeds support, in a few words, and the class that colours them."""
    if d.interval.count < 2:
        return {"verdict": "one seed"}
    if d.supported:
        better = d.interval.mean < 0
        return {"verdict": "better" if better else "worse", "state": "kept" if better else "broken"}
    return {"verdict": "not supported", "aside": "alone it would be" if d.p < LEVEL else ""}


def p_label(found: Comparison) -> str:
    """Heading of the column of p-values."""
    return "p, Holm" if sum(not math.isnan(d.p) for d in found.differences.values()) > 1 else "p"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else units.fixed(value, 3)


def _gap(value: float) -> str:
    return units.fixed(value, 4)


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + units.fixed(value, 4)


def failures(found: Comparison) -> list[tuple[str, str, str]]:
    """(variant, its seeds that failed, why), one entry for each reason."""
    rows = []
    for result in found.results:
        for reason in dict.fromkeys(result.failures.values()):
            seeds = [str(s) for s, r in result.failures.items() if r == reason]
            which = "all seeds" if len(seeds) == len(found.seeds) else f"seed {_and(seeds)}"
            rows.append((result.name, which, reason))
    return rows


def waiting(found: Comparison) -> list[str]:
    """Variants that lack a seed which did not fail: the comparison was stopped."""
    return [r.name for r in found.results if len(r.trials) + len(r.failures) < len(found.seeds)]


def cost(found: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each variant with sizes of the model and what the compared training took, as (figure, small print)."""
    return [(r.name, _cost(list(r.trials.values()))) for r in found.ranked]


def _cost(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    result = trials[0].stage.result
    tokens, flops, seconds = (_mean(trials, budget) for budget in ("tokens", "flops", "seconds"))
    active = units.si(figure(result, "active_parameters"))
    return [(units.si(figure(result, "parameters")), f"{active} active"),
            (units.si(trials[0].weights_bytes, "B"), ""), (units.si(tokens), ""),
            (units.si(flops, "FLOP"), f"{units.si(flops / tokens, 'FLOP')} a token" if tokens else ""),
            (units.seconds(seconds), f"{units.si(tokens / seconds)} tokens a second" if seconds else "")]


def _mean(trials: Sequence[Trial], budget: str) -> float:
    spent = [figure(t.training.result, budget) for t in trials if t.training]
    return math.fsum(spent) / len(spent) if spent else math.nan


def domains(found: Comparison) -> dict[str, Any]:
    """Mean bits per byte by domain over the seeds, the lowest of a column marked; empty for one domain."""
    scores = {r.name: _by_domain(r) for r in found.ranked}
    names = list(dict.fromkeys(d for row in scores.values() for d in row))
    if len(names) < 2:
        return {}
    columns = {d: {name: row[d] for name, row in scores.items() if d in row} for d in names}
    cells = {name: [cell(name, columns[d], 4) for d in names] for name in scores}
    return {"head": names, "rows": [{"name": name, "cells": row} for name, row in cells.items()]}


def _by_domain(result: Result) -> dict[str, float]:
    rows = [numbers(t.stage.evaluation.get("bits_per_byte")) for t in result.trials.values()]
    shared = [d for d in rows[0] if all(d in row for row in rows)]
    return {d: math.fsum(row[d] for row in rows) / len(rows) for d in shared}


def settings(found: Comparison) -> list[tuple[str, str]]:
    """Each variant with what it sets, as it would be written in a recipe."""
    return [(r.name, "\n".join(f"{path}: {_plain(value)}" for path, value in r.changes.items())) for r in found.results]


def _plain(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
