"""A comparison in words and tables: which differences the seeds support, what each variant cost, what failed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mixwell.compare.results import METRIC, Comparison, Result, Trial
from mixwell.compare.variants import last_key
from mixwell.core import units
from mixwell.report.records import figure, numbers, value_text
from mixwell.report.statistics import LEVEL, Difference, Interval
from mixwell.report.training import cell
from mixwell.report.words import listed

UNEQUAL = 1.02  # ratio of the dearest to the cheapest token from which compute is not called equal


def title(found: Comparison) -> str:
    """`standard-library by router`"""
    record = found.record
    keys = [last_key(str(path)) for path in record["vary"]]
    return f"{record['name']} by {listed(keys)}"


def lead(found: Comparison) -> str:
    """The answer: who is better and who worse than the baseline, and where the seeds cannot tell."""
    base = found.baseline
    if base not in {result.name for result in found.ranked}:
        return f"The baseline {base} has no result, so there is nothing to hold the others against."
    sentences = [_side(found, "Better", True), _side(found, "Worse", False)]
    undecided = _undecided(found)
    if undecided:
        sentences.append(f"No difference from {base} is supported for {listed(undecided)}.")
    single = [name for name, difference in _ranked(found) if difference.interval.count < 2]
    if single:
        sentences.append(f"One seed cannot tell a difference from luck: nothing is said of {listed(single)} against "
                         f"{base}.")
    failed = [result.name for result in found.results if result.failures and not result.trials]
    if failed:
        sentences.append(f"{listed(failed)} failed.")
    return " ".join(filter(None, sentences)) or f"Only {base} has a result so far."


def _ranked(found: Comparison) -> list[tuple[str, Difference]]:
    """Name and difference of the variants that have one, best first."""
    pairs = []
    for result in found.ranked:
        difference = found.differences.get(result.name)
        if difference:
            pairs.append((result.name, difference))
    return pairs


def _side(found: Comparison, word: str, gains: bool) -> str:
    """`Better than top_k: hash by 0.0310 (0.0201 to 0.0419) bits per byte.`"""
    parts = []
    for name, difference in _ranked(found):
        own = difference.interval
        if difference.supported and (own.mean < 0) == gains:
            parts.append(f"{name} by {_gap(abs(own.mean))} ({_reach(own, gains)})")
    if not parts:
        return ""
    return f"{word} than {found.baseline}: {listed(parts)} {METRIC}."


def _reach(own: Interval, gains: bool) -> str:
    """The interval of a gain or a loss, from its lower end."""
    ends = (-own.high, -own.low) if gains else (own.low, own.high)
    low, high = sorted(ends)
    return f"{_gap(low)} to {_gap(high)}"


def _undecided(found: Comparison) -> list[str]:
    names = []
    for name, difference in _ranked(found):
        if difference.interval.count > 1 and not difference.supported:
            names.append(name)
    return names


def notes(found: Comparison) -> list[str]:
    """How it was judged, in short sentences."""
    sentences = [f"Measured: mean {METRIC} of held-out text after the stage {found.record['stage']}, lower is better.",
                 _budget(found), _rule(found), _what_remains(found), _unequal_compute(found)]
    if not found.one_tokenizer:
        sentences.append("The variants have different tokenizers: their losses per token are not on one scale, and no "
                         "learning curves are shown; bits per byte are comparable.")
    sentences.append("Another budget, model size or text may order the variants otherwise.")
    return [sentence for sentence in sentences if sentence]


def _comparisons(found: Comparison) -> int:
    """How many differences rest on more than one seed, and so count for Holm's correction."""
    values = [difference.p for difference in found.differences.values()]
    return sum(not math.isnan(p) for p in values)


def _rule(found: Comparison) -> str:
    count = _comparisons(found)
    if not count:
        return ""
    several = f", after Holm's correction for {count} comparisons" if count > 1 else ""
    return ("Differences are paired by seed (same data in the same order, same draws); intervals are 95 % intervals of "
            f"Student's t. A difference is called supported where p is below {LEVEL}{several}.")


def _what_remains(found: Comparison) -> str:
    """How large a difference may still be where none is supported; empty where all is decided."""
    reach = 0.0
    undecided = _undecided(found)
    for name in undecided:
        own = found.differences[name].interval
        reach = max(reach, abs(own.low), abs(own.high))
    if not undecided:
        return ""
    return (f"Not supported does not mean equal: there, differences up to {_gap(reach)} remain possible; more seeds "
            "would narrow that.")


def _unequal_compute(found: Comparison) -> str:
    """Says so where tokens cost unequally much and the budget does not make up for it."""
    per_token = []
    for result in found.ranked:
        trials = list(result.trials.values())
        tokens = _mean(trials, "tokens")
        if tokens:
            per_token.append(_mean(trials, "flops") / tokens)
    if "flops" in found.record["budget"] or not per_token:
        return ""
    least, most = min(per_token), max(per_token)
    if not most > UNEQUAL * least:
        return ""
    return (f"A token costs from {units.si(least, 'FLOP')} to {units.si(most, 'FLOP')}: the variants did not have "
            "equal compute; --budget flops gives it to them.")


def _budget(found: Comparison) -> str:
    limits = [_limit(name, value) for name, value in found.record["budget"].items()]
    if not limits:
        return "Budget: as the recipe says."
    return f"Budget of every variant and seed: {listed(limits)}."


def _limit(name: str, value: float) -> str:
    if name == "seconds":
        return f"{units.seconds(value)} of training"
    if name == "bytes":
        return f"{units.si(value, 'B')} of weights"
    return units.si(value, "FLOP") if name == "flops" else f"{units.si(value)} tokens"


def table(found: Comparison) -> list[dict[str, Any]]:
    """A row for each variant with a result, best first."""
    means = {result.name: result.interval.mean for result in found.ranked}
    rows = []
    for result in found.ranked:
        best = cell(result.name, means, 4)["best"]
        rows.append(_row(found, result) | {"best": best})
    return rows


def _row(found: Comparison, result: Result) -> dict[str, Any]:
    own = result.interval
    row = dict.fromkeys(("half", "gap", "range", "p", "state", "aside"), "")
    row |= {"name": result.name, "seeds": str(own.count), "mean": units.fixed(own.mean, 4)}
    row["verdict"] = "baseline" if result.name == found.baseline else "no pair"
    if own.count > 1:
        row["half"] = f"± {units.fixed(own.half, 4)}"
    difference = found.differences.get(result.name)
    if difference is None:
        return row
    gap = difference.interval
    row["gap"] = signed(gap.mean)
    if gap.count > 1:
        row["range"] = f"{signed(gap.low)} to {signed(gap.high)}"
        row["p"] = p_text(difference.p_holm)
    return row | verdict(difference)


def verdict(difference: Difference) -> dict[str, str]:
    """What the seeds support, in a few words, and the class that colours them."""
    own = difference.interval
    if own.count < 2:
        return {"verdict": "one seed"}
    if not difference.supported:
        aside = "alone it would be" if difference.p < LEVEL else ""
        return {"verdict": "not supported", "aside": aside}
    if own.mean < 0:
        return {"verdict": "better", "state": "kept"}
    return {"verdict": "worse", "state": "broken"}


def p_label(found: Comparison) -> str:
    """Heading of the column of p-values."""
    return "p, Holm" if _comparisons(found) > 1 else "p"


def p_text(value: float) -> str:
    """A p-value; how small a very small one is says nothing."""
    return "< 0.001" if value < 0.001 else units.fixed(value, 3)


def _gap(value: float) -> str:
    return units.fixed(value, 4)


def signed(value: float) -> str:
    """A difference with its sign, the plus too."""
    sign = "+" if value > 0 else ""
    return sign + _gap(value)


def failures(found: Comparison) -> list[tuple[str, str, str]]:
    """(variant, its seeds that failed, why), one entry for each reason."""
    rows = []
    for result in found.results:
        by_reason: dict[str, list[str]] = {}
        for seed, reason in result.failures.items():
            by_reason.setdefault(reason, []).append(str(seed))
        for reason, seeds in by_reason.items():
            every = len(seeds) == len(found.seeds)
            which = "all seeds" if every else f"seed {listed(seeds)}"
            rows.append((result.name, which, reason))
    return rows


def waiting(found: Comparison) -> list[str]:
    """Variants that lack a seed which did not fail: the comparison was stopped."""
    names = []
    for result in found.results:
        ended = len(result.trials) + len(result.failures)
        if ended < len(found.seeds):
            names.append(result.name)
    return names


def cost(found: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each variant with sizes of the model and what the compared training took, as (figure, small print)."""
    rows = []
    for result in found.ranked:
        trials = list(result.trials.values())
        rows.append((result.name, _cost(trials)))
    return rows


def _cost(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    first = trials[0]
    parameters = units.si(figure(first.stage.result, "parameters"))
    active = units.si(figure(first.stage.result, "active_parameters"))
    tokens = _mean(trials, "tokens")
    flops = _mean(trials, "flops")
    seconds = _mean(trials, "seconds")
    per_token = f"{units.si(flops / tokens, 'FLOP')} a token" if tokens else ""
    speed = f"{units.si(tokens / seconds)} tokens a second" if seconds else ""
    return [
        (parameters, f"{active} active"),
        (units.si(first.weights_bytes, "B"), ""),
        (units.si(tokens), ""),
        (units.si(flops, "FLOP"), per_token),
        (units.seconds(seconds), speed)]


def _mean(trials: Sequence[Trial], budget: str) -> float:
    """What a training took of a budget, mean over the seeds; not a number where nothing was trained."""
    trained = [trial.training for trial in trials if trial.training]
    spent = [figure(training.result, budget) for training in trained]
    if not spent:
        return math.nan
    return math.fsum(spent) / len(spent)


def domains(found: Comparison) -> dict[str, Any]:
    """Mean bits per byte by domain over the seeds, the lowest of a column marked; empty for one domain."""
    scores = {result.name: _by_domain(result) for result in found.ranked}
    columns: dict[str, dict[str, float]] = {}  # domain -> variant -> score
    for name, row in scores.items():
        for domain, score in row.items():
            columns.setdefault(domain, {})[name] = score
    if len(columns) < 2:
        return {}
    rows = []
    for name in scores:
        cells = [cell(name, column, 4) for column in columns.values()]
        rows.append({"name": name, "cells": cells})
    return {"head": list(columns), "rows": rows}


def _by_domain(result: Result) -> dict[str, float]:
    """Means over the seeds, for the domains that all of these have."""
    by_seed = []
    for trial in result.trials.values():
        scores = trial.stage.evaluation.get("bits_per_byte")
        by_seed.append(numbers(scores))
    means = {}
    for domain in by_seed[0]:
        own = [row[domain] for row in by_seed if domain in row]
        if len(own) == len(by_seed):
            means[domain] = math.fsum(own) / len(own)
    return means


def settings(found: Comparison) -> list[tuple[str, str]]:
    """Each variant with what it sets, as it would be written in a recipe."""
    rows = []
    for result in found.results:
        lines = [f"{path}: {value_text(value)}" for path, value in result.changes.items()]
        rows.append((result.name, "\n".join(lines)))
    return rows
