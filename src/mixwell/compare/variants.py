"""What is compared: the recipes that a grid of changes makes, the stage that is judged, and the budget of each.

A key path is a recipe's (`stages.moe.router`, `moe.router`, `model.router`, `train.lr`); several keys make a grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from mixwell.core.errors import MixwellError, suggest
from mixwell.run import recipe as recipes
from mixwell.run.keys import stage_keys
from mixwell.run.recipe import BUDGETS, Recipe
from mixwell.run.stages import KINDS, Stage

UNITS = {"tokens": "tokens read", "flops": "FLOPs", "seconds": "seconds of training", "bytes": "bytes of weights"}
TRAINED = "trained"  # id of the stage that a recipe without one gets


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One cell of the grid; `recipe` is None where it cannot be, for the reason in `error`."""

    name: str
    changes: Mapping[str, Any]  # key path -> value as given
    recipe: Recipe | None
    error: str = ""


def parse_vary(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`["moe.router=top_k,sinkhorn", "train.lr=1e-3,2e-3"]` as key path -> values."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        path, equals, values = text.partition("=")
        if not equals or not path or path in found:
            problem = "the key stands twice" if path in found else "expected KEY=VALUE,VALUE"
            raise MixwellError(f"--vary {text!r}: {problem}, such as moe.router=top_k,sinkhorn.")
        try:
            parsed = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            raise MixwellError(f"--vary {text!r}: the values are not YAML; put quotes around special signs.") from None
        found[path] = parsed[0] if len(parsed) == 1 and isinstance(parsed[0], list) else parsed
    return found


def parse_budget(text: str) -> dict[str, float]:
    """`tokens=1M` or `flops=2T,bytes=20M` as plain numbers; see `check_budget`."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    return check_budget(recipes.counted({name.strip(): yaml.safe_load(value or "null") for name, _, value in pairs}))


def check_budget(budget: Mapping[str, Any]) -> dict[str, float]:
    """Numbers above 0 by name: at most one of tokens, flops and seconds, and bytes of weights with it or alone."""
    found: dict[str, float] = {}
    for name, value in budget.items():
        if name not in UNITS:
            raise MixwellError(f"--budget: unknown {name!r}.{suggest(name, UNITS)} Known: {', '.join(UNITS)}.")
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            raise MixwellError(f"--budget {name}: expected a number such as 1M, got {value!r}.") from None
        if not found[name] > 0:
            raise MixwellError(f"--budget {name}: expected a number above 0, got {value}.")
    if len(BUDGETS & set(found)) > 1:
        raise MixwellError(f"--budget: {' and '.join(sorted(BUDGETS & set(found)))} came; expected one of them.")
    return found


def variants(base: Recipe, vary: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Every cell of the grid. A value that no cell can take is a mistake and raises; a single such cell is kept."""
    for path, values in vary.items():
        if not isinstance(values, (list, tuple)) or len(values) < 2:
            raise MixwellError(f"--vary {path}: expected two values or more, got {values!r}.")
    if "seed" in vary:
        raise MixwellError("--vary seed: every variant is run from the same seeds; name them with --seeds.")
    if not vary:
        raise MixwellError("--vary: expected what to vary, such as moe.router=top_k,sinkhorn.")
    cells = [dict(zip(vary, values)) for values in itertools.product(*vary.values())]
    found = [_variant(base, cell) for cell in cells]
    names = [v.name for v in found]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise MixwellError(f"--vary: {twice} stands twice.")
    for path, values in vary.items():
        for value in values:
            own = [v for v in found if v.changes[path] == value]
            if all(v.error for v in own):
                raise MixwellError(own[0].error)
    return found


def _variant(base: Recipe, changes: Mapping[str, Any]) -> Variant:
    name = label(changes)
    try:
        made = recipes.changed(base, changes)
        recipes.stages(made)
    except MixwellError as error:
        return Variant(name=name, changes=changes, recipe=None, error=str(error))
    return Variant(name=name, changes=changes, recipe=made)


def label(changes: Mapping[str, Any]) -> str:
    """What a cell is called: the bare value where one key varies, else `key=value` of each."""
    if len(changes) == 1:
        return _word(next(iter(changes.values())))
    ends = [path.rpartition(".")[2] for path in changes]
    keys = [end if ends.count(end) == 1 else path for end, path in zip(ends, changes)]
    return ", ".join(f"{key}={_word(value)}" for key, value in zip(keys, changes.values()))


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        rest = ", ".join(f"{k}={_word(v)}" for k, v in value.items() if k != "method")
        return f"{value['method']}({rest})" if "method" in value and rest else str(value.get("method", rest))
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_word, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def baseline_of(found: Sequence[Variant], wanted: str | None) -> str:
    """The name of the baseline: the one wanted (values alone will do, such as `top_k,1`), else the first."""
    if wanted is None:
        return found[0].name
    short = {",".join(map(_word, v.changes.values())): v.name for v in found}
    names = {v.name: v.name for v in found}
    chosen = names.get(wanted) or short.get(wanted.replace(", ", ","))
    if chosen is None:
        raise MixwellError(f"--baseline: no variant {wanted!r}.{suggest(wanted, names)} Variants: {'; '.join(names)}.")
    return chosen


def with_training(base: Recipe, budget: Mapping[str, float]) -> Recipe:
    """The recipe itself, or with a stage that trains its model where it has no stages and the budget pays for one."""
    training = {name: value for name, value in budget.items() if name in BUDGETS}
    return base if base.stages or not training else replace(base, stages=[{"id": TRAINED, "train": training}])


def judged_stage(found: Sequence[Variant], wanted: str | None, threads: int) -> str:
    """The stage whose model is compared: the one wanted, else the last that trains on what the variants differ in.

    A stage that is the same in two variants compares nothing and raises.
    """
    able = [(v.name, recipes.stages(v.recipe)) for v in found if v.recipe is not None]
    if len(able) < 2:
        raise MixwellError(f"one variant at most can be made; {next(v.error for v in found if v.error)}")
    keys = {name: stage_keys(stages, threads) for name, stages in able}
    if len({k["data"] for k in keys.values()}) > 1:
        raise MixwellError("the variants differ in their data, so that each would be measured on held-out text of its "
                           "own; vary the training's weights of the domains instead (train.weights).")
    stages = {s.id: s for s in able[0][1]}
    models = [id for id, stage in stages.items() if KINDS[stage.kind].evaluated]
    differing = [id for id in models if len({k.get(id) for k in keys.values()}) == len(keys)]
    if wanted is not None and wanted not in models:
        raise MixwellError(f"--stage: {wanted!r} is no stage with a model that is evaluated.{suggest(wanted, models)} "
                           f"Such stages: {', '.join(models) or 'none'}.")
    chosen = wanted or next((id for id in reversed(differing) if stages[id].kind == "train"), None) \
        or next(reversed(differing), None) or next(reversed(models), None)
    if chosen is None:
        raise MixwellError("the recipe trains and converts nothing; give it a stage, or --budget tokens=1M.")
    _check_differs(keys, chosen)
    return chosen


def _check_differs(keys: Mapping[str, Mapping[str, str]], stage: str) -> None:
    first: dict[str, str] = {}
    for name, own in keys.items():
        other = first.setdefault(own[stage], name)
        if other != name:
            raise MixwellError(f"{other} and {name} are the same up to stage {stage}: what is varied does not reach "
                               "it. Name another key, or another stage with --stage.")


def prepared(variant_recipe: Recipe, stage: str, budget: Mapping[str, float], seed: int) -> Recipe:
    """The recipe up to `stage`, with this seed and with the budget of its last training."""
    line = ancestors(recipes.stages(variant_recipe), stage)
    trained = next((s.id for s in reversed(line) if s.kind == "train"), "")
    training = {name: value for name, value in budget.items() if name in BUDGETS}
    if training and not trained:
        raise MixwellError(f"--budget {next(iter(training))}: nothing is trained on the way to {stage}; leave it out.")
    entries = []
    for entry in variant_recipe.stages:
        if entry["id"] not in {s.id for s in line}:
            continue
        own = {"seed": entry["seed"] + seed - variant_recipe.seed} if "seed" in entry else {}
        entries.append({**(_with_budget(entry, training) if entry["id"] == trained and training else entry), **own})
    return replace(variant_recipe, seed=seed, stages=entries)


def ancestors(stages: Sequence[Stage], last: str) -> list[Stage]:
    """The stages that `last` builds on, and itself, in their order."""
    known = {s.id: s for s in stages}
    needed, waiting = set(), [last]
    while waiting:
        one = waiting.pop()
        needed.add(one)
        waiting += known[one].inputs.values()
    return [s for s in stages if s.id in needed]


def _with_budget(entry: Mapping[str, Any], training: Mapping[str, float]) -> dict[str, Any]:
    below = entry["train"] if isinstance(entry["train"], Mapping) else {}
    kept = {k: v for k, v in entry.items() if k not in BUDGETS}
    return {**kept, "train": {**{k: v for k, v in below.items() if k not in BUDGETS}, **training}}
