"""The answer of a run in plain words: who won at equal tokens, FLOPs and seconds, what it cost, what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixwell.core import units
from mixwell.report import settle
from mixwell.report.experts import DEAD, dead_experts, loads_of
from mixwell.report.records import RunRecord, StageRecord, figure, read_run
from mixwell.report.sides import BUDGETS, Side, held_out_gap, name_clashes, sides
from mixwell.report.statistics import Interval, interval
from mixwell.report.verdict import NAMES, NEAR, Verdict, amount, judge

METRIC = "bits per byte of held-out text"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one side takes; `time` and `flops` of a training token are also told as multiples of the reference's."""

    side: str
    parameters: float
    active: float
    flops_per_token: float
    seconds_per_token: float
    time_factor: float
    flops_factor: float


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
    return Answer(sentences=sentences(verdicts), reference=_reference(found).name if found else "",
                  costs=costs(found), experts=experts_in_words(best_mixture(run)),
                  model=best.model_folder if best else None, remedies=remedies(run, verdicts),
                  commands=(*settling(run, verdicts), *_next(best)))


def answer_lines(run_folder: str | Path) -> list[str]:
    """The answer for the end of a run in a terminal, a fact a line. A damaged run raises `MixwellError`."""
    found = answer(read_run(run_folder))
    lines = list(found.sentences)
    lines += [_cost_in_words(cost, found.reference) for cost in found.costs]
    lines += [found.experts] if found.experts else []
    lines += [f"model: {found.model}"] if found.model else []
    for budget, entries in found.remedies.items():
        lines += [f"for a verdict at equal {NAMES[budget]}, add to the recipe:", *(f"  {entry}" for entry in entries)]
    return lines + [f"next: {line}" for line in found.commands]


def headline(run: RunRecord) -> dict[str, Any]:
    """The sentence, a card for each verdict, the table of costs and notes; empty for a run without training."""
    found = sides(run)
    if not found:
        return {}
    verdicts = verdicts_of(found)
    return {"sentence": " ".join(sentences(verdicts)), "cards": [_card(v) for v in verdicts] if len(found) > 1 else [],
            "costs": _cost_table(found), "experts": experts_in_words(best_mixture(run)),
            "remedies": [(NAMES[b], "\n".join(entries)) for b, entries in remedies(run, verdicts).items()],
            "commands": settling(run, verdicts), "notes": _notes(found, verdicts)}


def verdicts_of(found: Sequence[Side]) -> list[Verdict]:
    """The verdicts at each budget."""
    return [verdict for budget in BUDGETS for verdict in judge(found, budget)] if found else []


def sentences(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """`moe won at equal tokens and at equal FLOPs: moe is lower than ...`, a sentence for each outcome."""
    if verdicts and all(v.obstacle == verdicts[0].obstacle and not v.ranked for v in verdicts):
        return (f"There is no winner to name: {verdicts[0].obstacle}.",)
    said: dict[tuple[str, str], list[str]] = {}
    for v in verdicts:
        said.setdefault(_outcome(v), []).append(f"at equal {NAMES[v.budget]}")
    return tuple(f"{outcome} {_and(places)}: {reason}." for (outcome, reason), places in said.items())


def _outcome(verdict: Verdict) -> tuple[str, str]:
    """The outcome in two or three words, and the reason."""
    if verdict.obstacle:
        return "Nothing was compared", verdict.obstacle
    first, second, gain = verdict.ranked[0].name, verdict.ranked[1].name, verdict.gains[0]
    lower = f"{first} is lower than {second} by {units.percent(gain.mean, 2)} in {METRIC}"
    if verdict.won:
        return f"{first} won", f"{lower} ({_range(gain)})"
    if verdict.seeds > 1:
        return "No clear difference", f"{lower}, within the noise ({_range(verdict.unclear)})"
    return "One seed" if verdict.seeds else "No seed in common", lower


def _range(gain: Interval) -> str:
    """`95 % interval 1.10 to 2.50 %, 3 seeds`"""
    low, high = (units.percent(v, 2) for v in (gain.low, gain.high))
    return f"95{units.THIN}% interval {low.removesuffix(f'{units.THIN}%')} to {high}, {gain.count} seeds"


def settling(run: RunRecord, verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """Commands that would decide the verdicts that too few seeds leave open, each once for each pair of sides."""
    found: dict[tuple[str, str], str] = {}
    for v in verdicts:
        if v.ranked and not v.won:
            pair = (v.ranked[0].name, v.ranked[1].name)
            found.setdefault(pair, settle.command(run, v.ranked[0], v.ranked[1], v.budget, v.seeds))
    return tuple(line for line in found.values() if line)


def remedies(run: RunRecord, verdicts: Sequence[Verdict]) -> dict[str, list[str]]:
    """Budget that compares nothing -> entries for the recipe, one a seed, after which it would compare two sides."""
    found = {v.budget: settle.longer(run, *v.nearest, v.budget) for v in verdicts if v.nearest}
    return {budget: entries for budget, entries in found.items() if entries}


def best_model(run: RunRecord) -> StageRecord | None:
    """The trained stage with the lowest held-out bits per byte."""
    return min(_measured(run), key=lambda s: float(s.evaluation["mean"]), default=None)


def best_mixture(run: RunRecord) -> StageRecord | None:
    """The best of the trained models that have experts."""
    return min((s for s in _measured(run) if loads_of(s)), key=lambda s: float(s.evaluation["mean"]), default=None)


def _measured(run: RunRecord) -> list[StageRecord]:
    return [s for s in run.stages if s.trains and units.is_number(s.evaluation.get("mean"))]


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
    dead = {layer: experts for layer, shares in loads.items() if (experts := dead_experts(shares))}
    count, total = sum(map(len, dead.values())), sum(map(len, loads.values()))
    rule = f"under {units.percent(DEAD, 0)} of an even load on held-out text"
    if not count:
        return f"{stage.id}: none of {total} experts is dead ({rule})."
    places = "; ".join(f"layer {layer}: {', '.join(map(str, experts))}" for layer, experts in dead.items())
    return f"{stage.id}: {count} of {total} experts {'is' if count == 1 else 'are'} dead ({rule}): {places}."


def _reference(found: Sequence[Side]) -> Side:
    """The first dense side, else the first."""
    return next((side for side in found if not side.is_mixture), found[0])


def costs(found: Sequence[Side]) -> tuple[Cost, ...]:
    """Sizes and cost of a training token of every side."""
    if not found:
        return ()
    base = _reference(found)
    return tuple(Cost(
        side=side.name, parameters=figure(side.first.result, "parameters"),
        active=figure(side.first.result, "active_parameters"), flops_per_token=side.per_token("flops"),
        seconds_per_token=side.per_token("seconds"), time_factor=_ratio(side, base, "seconds"),
        flops_factor=_ratio(side, base, "flops")) for side in found)


def _ratio(side: Side, base: Side, budget: str) -> float:
    below = base.per_token(budget)
    return side.per_token(budget) / below if below else float("nan")


def _cost_in_words(cost: Cost, reference: str) -> str:
    """`moe: 14.2 M parameters, 6.30 M active; a token takes 2.1 times the time of dense and 1.5 times its FLOPs`"""
    active = f", {units.si(cost.active)} active" if cost.active < cost.parameters else ""
    time = f"{units.number(1e6 * cost.seconds_per_token)}{units.THIN}µs"
    factors = "" if cost.side == reference else (f", {units.number(cost.time_factor, 2)} times {reference}'s, and "
                                                 f"{units.number(cost.flops_factor, 2)} times its FLOPs")
    return f"{cost.side}: {units.si(cost.parameters)} parameters{active}; a training token takes {time}{factors}"


def _cost_table(found: Sequence[Side]) -> list[list[tuple[str, str]]]:
    """A row for each side, each cell with its small print."""
    rows = []
    base = _reference(found)
    for side, cost in zip(found, costs(found)):
        factors = ["" if side is base else f"{units.number(f, 2)}{units.THIN}× {base.name}"
                   for f in (cost.flops_factor, cost.time_factor)]
        score = interval(list(side.scores.values())) if side.scores else None
        noise = f"± {units.fixed(score.half, 3)}, {score.count} seeds" if score and score.count > 1 else "one seed"
        rows.append([(side.name, ""), (units.fixed(side.score, 3), noise if score else ""),
                     (units.si(cost.parameters), f"{units.si(cost.active) if side.is_mixture else 'all'} active"),
                     (units.si(cost.flops_per_token, "FLOP"), factors[0]),
                     (f"{units.number(1e6 * cost.seconds_per_token)}{units.THIN}µs", factors[1]),
                     *((amount(budget, side.spent[budget]), "") for budget in BUDGETS)])
    return rows


def _card(verdict: Verdict) -> dict[str, Any]:
    name = NAMES[verdict.budget]
    outcome, reason = _outcome(verdict)
    if verdict.obstacle:
        return {"budget": name, "amount": "", "outcome": outcome, "won": False, "rows": [],
                "text": f"{reason[0].upper()}{reason[1:]}."}
    near = f" Budgets agree to {units.percent(verdict.spread)}." if verdict.spread >= 0.001 else ""
    return {"budget": name, "amount": verdict.amount, "outcome": outcome, "won": verdict.won,
            "rows": [(side.name, units.fixed(side.score, 3)) for side in verdict.ranked], "text": f"{reason}.{near}"}


def _notes(found: Sequence[Side], verdicts: Sequence[Verdict]) -> list[str]:
    notes = []
    if any(v.ranked for v in verdicts):
        near, near_s = (units.percent(NEAR[budget], 0) for budget in ("tokens", "seconds"))
        notes.append("Compared are finished models: each side trained to the end of its own schedule, on budgets "
                     f"that agree to within {near} ({near_s} of seconds). {METRIC.capitalize()} decide, lower is "
                     "better. Budgets count training only, from where the branches parted. A side has won where "
                     "the 95 % interval over seeds, paired, lies above zero; one seed names no winner.")
    gaps = [f"{side.name} {units.fixed(gap, 3)}" for side in found if units.is_number(gap := held_out_gap(side.first))]
    if gaps:
        notes.append("Loss on held-out text minus that on the text trained on, at the end, nats per token: "
                     f"{', '.join(gaps)}.")
    notes += [f"Several sides are called {name}, but differ in more than the seed; they are judged apart, by their ids."
              for name in name_clashes(found)]
    return notes


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
