"""What would settle what a run leaves open: a `mixwell compare` that works as printed, or a stage to add."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from mixwell.report.records import RECIPE, RunRecord, StageRecord
from mixwell.report.sides import BUDGETS, Side

SEEDS = 3  # fewer hardly ever decide
FREE = {*BUDGETS, "log_every", "save_every", "save_every_s", "eval_every", "eval_tokens", "tensorboard"}


def command(run: RunRecord, better: Side, worse: Side, budget: str, seeds: int) -> str:
    """The comparison of two sides over more seeds than the `seeds` they had; empty where no single key sets them apart.

    Two trainings compare so where each is the last and only one of its side: from different models, or with one option
    of another value.
    """
    trainings = [_own_training(run, side, other) for side, other in ((better, worse), (worse, better))]
    if run.folder is None or any(len(own) != 1 for own in trainings):
        return ""
    order = [s.id for s in run.stages]
    judged = max(better.first.id, worse.first.id, key=order.index)  # it stands below whatever either starts from
    if not (varied := _varied(run, better.first, worse.first)):
        return ""
    key, values = varied
    amount = max(better.spent[budget], worse.spent[budget])
    limit = f"{amount:.3g}" if budget == "seconds" else f"{amount:.0f}"
    words = ["mixwell", "compare", str(run.folder / RECIPE), "--vary", f"{judged}.{key}={values}", "--stage",
             judged, "--budget", f"{budget}={limit}", "--seeds", str(max(SEEDS, 2 * seeds))]
    return shlex.join(words)


def _own_training(run: RunRecord, side: Side, other: Side) -> list[StageRecord]:
    return [s for s in run.ancestors(side.first) if s.trains and s.id not in other.line]


def _varied(run: RunRecord, better: StageRecord, worse: StageRecord) -> tuple[str, str] | None:
    """The key of the stage that sets the two apart, and its two values, the worse one's first."""
    entries = [_entry(run, stage) for stage in (worse, better)]
    if not all(entries):
        return None
    known = {**better.config, **worse.config}
    keys = [k for k in known if k not in FREE and better.config.get(k) != worse.config.get(k)]
    sources = [entry.get("from", "model") for entry in entries]
    if not keys and sources[0] != sources[1]:
        return "from", ",".join(sources)
    if len(keys) == 1 and sources[0] == sources[1]:
        return keys[0], ",".join(_flow(stage.config.get(keys[0])) for stage in (worse, better))
    return None


def _entry(run: RunRecord, stage: StageRecord) -> Mapping[str, Any]:
    """The stage as the recipe has it; empty where it comes from a top-level key."""
    return next((e for e in run.recipe.get("stages") or () if e.get("id") == stage.id), {})


def longer(run: RunRecord, less: Side, more: Side, budget: str) -> list[str]:
    """Entries for the recipe, one a seed: `less` trained until it spends as much of `budget` as `more`."""
    missing = less.spent["tokens"] * (more.spent[budget] / less.spent[budget] - 1)
    return [_lengthened(entry, stage, missing, budget) for stage in less.ends.values()
            if "train" in (entry := _entry(run, stage))]


def _lengthened(entry: Mapping[str, Any], stage: StageRecord, tokens: float, budget: str) -> str:
    """The entry with so many tokens more than `stage` read, under an id of its own."""
    below = entry["train"] if isinstance(entry["train"], Mapping) else {}
    total = int(float(f"{stage.result['tokens'] + tokens:.3g}"))
    train = {**{k: v for k, v in below.items() if k not in BUDGETS}, "tokens": total}
    others = {k: v for k, v in entry.items() if k not in (*BUDGETS, "side")}
    id = re.sub(r"(-s\d+)?$", rf"-{budget}\1", stage.id, count=1)  # dense-s0 -> dense-seconds-s0
    return f"- {_flow({**others, 'id': id, 'train': train})}"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
