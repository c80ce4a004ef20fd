"""What would settle what a run leaves open: a `mixwell compare` that works as printed, or a stage to add."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from mixwell.report.records import RECIPE, RunRecord, StageRecord, value_text
from mixwell.report.sides import BUDGETS, Side

SEEDS = 3  # fewer hardly ever decide
GIVEN = (*BUDGETS, "steps", "epochs")  # keys of a recipe that say how long a training is
FREE = {*GIVEN, "log_every", "save_every", "save_every_s", "eval_every", "eval_tokens", "tensorboard"}


def command(run: RunRecord, better: Side, worse: Side, budget: str, seeds: int) -> str:
    """The comparison of two sides over more seeds than the `seeds` they had; empty where no single key sets them apart.

    Two trainings compare so where each is the last and only one of its side: from different models, or with one option
    of another value.
    """
    if run.folder is None or not (_trained_once(run, better, worse) and _trained_once(run, worse, better)):
        return ""
    varied = _varied(run, better.first, worse.first)
    if varied is None:
        return ""
    key, values = varied
    order = [stage.id for stage in run.stages]
    judged = max(better.first.id, worse.first.id, key=order.index)  # it stands below whatever either starts from
    amount = max(better.spent[budget], worse.spent[budget])
    limit = f"{amount:.3g}" if budget == "seconds" else f"{amount:.0f}"
    words = ["mixwell", "compare", str(run.folder / RECIPE)]
    words += ["--vary", f"{judged}.{key}={values}", "--stage", judged]
    words += ["--budget", f"{budget}={limit}", "--seeds", str(max(SEEDS, 2 * seeds))]
    return shlex.join(words)


def _trained_once(run: RunRecord, side: Side, other: Side) -> bool:
    """Whether a single training sets the side apart from the other."""
    trained = [stage.id for stage in run.ancestors(side.first) if stage.trains]
    own = [stage for stage in trained if stage not in other.line]
    return len(own) == 1


def _varied(run: RunRecord, better: StageRecord, worse: StageRecord) -> tuple[str, str] | None:
    """The key of the stage that sets the two apart, and its two values, the worse one's first."""
    stages = (worse, better)
    entries = [_entry(run, stage) for stage in stages]
    if not all(entries):
        return None
    keys = _differing(better.config, worse.config)
    sources = [entry.get("from", "model") for entry in entries]
    same_source = sources[0] == sources[1]
    if not keys and not same_source:
        return "from", ",".join(sources)
    if len(keys) != 1 or not same_source:
        return None
    key = keys[0]
    values = [value_text(stage.config.get(key)) for stage in stages]
    return key, ",".join(values)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Options with unequal values, without those that a comparison may leave unequal."""
    found = []
    for key in {**one, **other}:
        if key not in FREE and one.get(key) != other.get(key):
            found.append(key)
    return found


def _entry(run: RunRecord, stage: StageRecord) -> Mapping[str, Any]:
    """The stage as the recipe has it; empty where it comes from a top-level key."""
    for entry in run.recipe.get("stages") or ():
        if entry.get("id") == stage.id:
            return entry
    return {}


def longer(run: RunRecord, less: Side, more: Side, budget: str) -> list[str]:
    """Entries for the recipe, one a seed: `less` trained until it spends as much of `budget` as `more`."""
    shortfall = more.spent[budget] / less.spent[budget] - 1
    missing = less.spent["tokens"] * shortfall
    entries = []
    for stage in less.ends.values():
        entry = _entry(run, stage)
        if "train" in entry:
            entries.append(_lengthened(entry, stage, missing, budget))
    return entries


def _lengthened(entry: Mapping[str, Any], stage: StageRecord, tokens: float, budget: str) -> str:
    """The entry with so many tokens more than `stage` read, under an id of its own."""
    options = entry["train"] if isinstance(entry["train"], Mapping) else {}
    total = stage.result["tokens"] + tokens
    rounded = int(float(f"{total:.3g}"))
    train = _without(options, GIVEN) | {"tokens": rounded}
    others = _without(entry, (*GIVEN, "side"))
    name = re.sub(r"(-s\d+)?$", rf"-{budget}\1", stage.id, count=1)  # dense-s0 -> dense-seconds-s0
    longer = value_text(others | {"id": name, "train": train})
    return f"- {longer}"


def _without(options: Mapping[str, Any], left_out: Collection[str]) -> dict[str, Any]:
    kept = dict(options)
    for key in left_out:
        kept.pop(key, None)
    return kept
