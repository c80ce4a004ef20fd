"""The answer of a run in plain words: who won at equal tokens, FLOPs and seconds, what it cost, what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixwell.core import units
from mixwell.report import settle
from mixwell.report.costs import Cost, cost_in_words, cost_table, costs, reference
from mixwell.report.experts import DEAD, dead_experts, loads_of
from mixwell.report.records import RunRecord, StageRecord, read_run
from mixwell.report.sides import BUDGETS, Side, held_out_gap, name_clashes, sides
from mixwell.report.statistics import Interval
from mixwell.report.verdict import NAMES, NEAR, Verdict, judge
from mixwell.report.words import listed

METRIC = "bits per byte of held-out text"
RULES = (f"Compared are finished models: each side trained to the end of its own schedule, on budgets that agree to "
         f"within {units.percent(NEAR['tokens'], 0)} ({units.percent(NEAR['seconds'], 0)} of seconds). "
         f"{METRIC.capitalize()} decide, lower is better. Budgets count training only, from where the branches parted. "
         "A side has won where the 95 % interval over seeds, paired, lies above zero; one seed names no winner.")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a run found, as plain data."""

    sentences: tuple[str, ...]  # verdicts at all budgets; empty for a run without training
    reference: str  # side that the factors refer to
    costs: tuple[Cost, ...]  # by side
    experts: str  # how many of the best mixture's are dead, in words; empty without a mixture
    model: Path | None  # folder of the model with the lowest held-out bits per byte
    remedies: Mapping[str, Sequence[str]]  # budget that compares nothing -> entries for the recipe that change it
    commands: tuple[str, ...]  # what to type next


def answer(run: RunRecord) -> Answer:
    """The answer of a finished run."""
    found = sides(run)
    verdicts = verdicts_of(found)
    best = best_model(run)
    return Answer(
        sentences=sentences(verdicts),
        reference=reference(found).name if found else "",
        costs=costs(found),
        experts=experts_in_words(best_mixture(run)),
        model=best.model_folder if best else None,
        remedies=remedies(run, verdicts),
        commands=(*settling(run, verdicts), *_next(best)))


def answer_lines(run_folder: str | Path) -> list[str]:
    """The answer for the end of a run in a terminal, a fact a line. A damaged run raises `MixwellError`."""
    found = answer(read_run(run_folder))
    lines = list(found.sentences)
    lines += [cost_in_words(cost, found.reference) for cost in found.costs]
    if found.experts:
        lines.append(found.experts)
    if found.model:
        lines.append(f"model: {found.model}")
    for budget, entries in found.remedies.items():
        lines.append(f"for a verdict at equal {NAMES[budget]}, add to the recipe:")
        lines += [f"  {entry}" for entry in entries]
    lines += [f"next: {command}" for command in found.commands]
    return lines


def headline(run: RunRecord) -> dict[str, Any]:
    """The sentence, a card for each verdict, the table of costs and notes; empty for a run without training."""
    found = sides(run)
    if not found:
        return {}
    verdicts = verdicts_of(found)
    entries = remedies(run, verdicts)
    return {
        "sentence": " ".join(sentences(verdicts)),
        "cards": [_card(v) for v in verdicts] if len(found) > 1 else [],
        "costs": cost_table(found),
        "experts": experts_in_words(best_mixture(run)),
        "remedies": [(NAMES[budget], "\n".join(lines)) for budget, lines in entries.items()],
        "commands": settling(run, verdicts),
        "notes": _notes(found, verdicts)}


def verdicts_of(found: Sequence[Side]) -> list[Verdict]:
    """The verdicts at each budget."""
    verdicts: list[Verdict] = []
    for budget in BUDGETS if found else ():
        verdicts += judge(found, budget)
    return verdicts


def sentences(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """`moe won at equal tokens and at equal FLOPs: moe is lower than ...`, a sentence for each outcome."""
    obstacles = {v.obstacle for v in verdicts}
    if len(obstacles) == 1 and not any(v.ranked for v in verdicts):
        return (f"There is no winner to name: {obstacles.pop()}.",)
    places: dict[tuple[str, str], list[str]] = {}
    for v in verdicts:
        at = places.setdefault(_outcome(v), [])
        at.append(f"at equal {NAMES[v.budget]}")
    found = []
    for (outcome, reason), at in places.items():
        found.append(f"{outcome} {listed(at)}: {reason}.")
    return tuple(found)


def _outcome(verdict: Verdict) -> tuple[str, str]:
    """The outcome in two or three words, and the reason."""
    if verdict.obstacle:
        return "Nothing was compared", verdict.obstacle
    first, second = verdict.ranked[:2]
    gain = verdict.gains[0]
    lower = f"{first.name} is lower than {second.name} by {units.percent(gain.mean, 2)} in {METRIC}"
    if verdict.won:
        return f"{first.name} won", f"{lower} ({_range(gain)})"
    if verdict.seeds > 1:
        return "No clear difference", f"{lower}, within the noise ({_range(verdict.unclear)})"
    return "One seed" if verdict.seeds else "No seed in common", lower


def _range(gain: Interval) -> str:
    """`95 % interval 1.10 to 2.50 %, 3 seeds`"""
    sign = f"{units.THIN}%"
    low = units.percent(gain.low, 2).removesuffix(sign)  # one sign serves both ends
    high = units.percent(gain.high, 2)
    return f"95{sign} interval {low} to {high}, {gain.count} seeds"


def settling(run: RunRecord, verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """Commands that would decide the verdicts that too few seeds leave open, each once for each pair of sides."""
    found: dict[tuple[str, str], str] = {}
    for v in verdicts:
        if not v.ranked or v.won:
            continue
        first, second = v.ranked[:2]
        pair = (first.name, second.name)
        if pair not in found:
            found[pair] = settle.command(run, first, second, v.budget, v.seeds)
    return tuple(command for command in found.values() if command)


def remedies(run: RunRecord, verdicts: Sequence[Verdict]) -> dict[str, list[str]]:
    """Budget that compares nothing -> entries for the recipe, one a seed, after which it would compare two sides."""
    found = {}
    for v in verdicts:
        entries = settle.longer(run, *v.nearest, v.budget) if v.nearest else []
        if entries:
            found[v.budget] = entries
    return found


def best_model(run: RunRecord) -> StageRecord | None:
    """The trained stage with the lowest held-out bits per byte."""
    return _best(_measured(run))


def best_mixture(run: RunRecord) -> StageRecord | None:
    """The best of the trained models that have experts."""
    mixtures = [stage for stage in _measured(run) if loads_of(stage)]
    return _best(mixtures)


def _best(found: Sequence[StageRecord]) -> StageRecord | None:
    return min(found, key=lambda stage: float(stage.evaluation["mean"]), default=None)


def _measured(run: RunRecord) -> list[StageRecord]:
    trained = [stage for stage in run.stages if stage.trains]
    return [stage for stage in trained if units.is_number(stage.evaluation.get("mean"))]


def _next(best: StageRecord | None) -> tuple[str, ...]:
    """What one may do with the best model: see where its tokens go, or make a mixture of it."""
    if best is None or best.model_folder is None:
        return ()
    place = shlex.quote(str(best.model_folder))
    if loads_of(best):
        return (f"mixwell apply experts.analysis.load --in {place}",)
    return (f"mixwell apply convert.upcycle --in {place} --out moe num_experts=8 router.k=2",)


def experts_in_words(stage: StageRecord | None) -> str:
    """`moe-trained: 4 of 32 experts are dead (under a quarter of an even load on held-out text): layer 0: 3, 5`"""
    loads = loads_of(stage) if stage else {}
    if stage is None or not loads:
        return ""
    rule = f"under {units.percent(DEAD, 0)} of an even load on held-out text"
    total, count = 0, 0
    places = []
    for layer, shares in loads.items():
        dead = dead_experts(shares)
        total += len(shares)
        count += len(dead)
        if dead:
            places.append(f"layer {layer}: {', '.join(map(str, dead))}")
    if not count:
        return f"{stage.id}: none of {total} experts is dead ({rule})."
    verb = "is" if count == 1 else "are"
    return f"{stage.id}: {count} of {total} experts {verb} dead ({rule}): {'; '.join(places)}."


def _card(verdict: Verdict) -> dict[str, Any]:
    outcome, reason = _outcome(verdict)
    card = {"budget": NAMES[verdict.budget], "outcome": outcome, "won": verdict.won}
    if verdict.obstacle:
        sentence = f"{reason[0].upper()}{reason[1:]}."
        return {**card, "amount": "", "rows": [], "text": sentence}
    text = f"{reason}."
    if verdict.spread >= 0.001:
        text += f" Budgets agree to {units.percent(verdict.spread)}."
    rows = [(side.name, units.fixed(side.score, 3)) for side in verdict.ranked]
    return {**card, "amount": verdict.amount, "rows": rows, "text": text}


def _notes(found: Sequence[Side], verdicts: Sequence[Verdict]) -> list[str]:
    """What a reader must know to trust the verdicts."""
    notes = [RULES] if any(v.ranked for v in verdicts) else []
    gaps = []
    for side in found:
        gap = held_out_gap(side.first)
        if units.is_number(gap):
            gaps.append(f"{side.name} {units.fixed(gap, 3)}")
    if gaps:
        notes.append("Loss on held-out text minus that on the text trained on, at the end, nats per token: "
                     f"{', '.join(gaps)}.")
    for name in name_clashes(found):
        notes.append(f"Several sides are called {name}, but differ in more than the seed; they are judged apart, by "
                     "their ids.")
    return notes
