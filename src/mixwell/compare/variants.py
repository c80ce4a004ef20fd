"""What is compared: the recipes that a grid of changes makes, the stage that is judged, and the budget of each.

A key path is a recipe's (`stages.moe.router`, `moe.router`, `model.router`, `train.lr`); several keys make a grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixwell.compare.budgets import amounts
from mixwell.core.errors import MixwellError, suggest
from mixwell.run import recipe as recipes
from mixwell.run import sizing, yaml_data
from mixwell.run.keys import stage_keys
from mixwell.run.recipe import BUDGETS, Recipe
from mixwell.run.sizing import TRAINING
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
    """`["moe.router=top_k,sinkhorn", "train.lr=1e-3,2e-3"]` as key path -> values; raises `MixwellError`."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        path, equals, values = text.partition("=")
        if not equals or not path or path in found:
            problem = "the key stands twice" if path in found else "expected KEY=VALUE,VALUE"
            raise MixwellError(f"--vary {text!r}: {problem}, such as moe.router=top_k,sinkhorn.")
        found[path] = _values(text, values)
    return found


def _values(text: str, values: str) -> list[Any]:
    try:
        parsed = yaml_data.parse(f"[{values}]", "the values")
    except MixwellError:
        raise MixwellError(f"--vary {text!r}: the values are not YAML; put quotes around special signs.") from None
    bracketed = len(parsed) == 1 and isinstance(parsed[0], list)
    return parsed[0] if bracketed else parsed


def parse_budget(budget: Mapping[str, Any] | str | None) -> dict[str, float]:
    """`tokens=1M` or `flops=2T,bytes=20M` as numbers above 0 by name.

    At most one of tokens, flops and seconds, and bytes of weights with it or alone; anything else raises
    `MixwellError`.
    """
    found = amounts(budget or {}, UNITS)
    for name, amount in found.items():
        if amount <= 0:
            raise MixwellError(f"--budget {name}: expected a number above 0, got {amount:g}.")
    training = sorted(BUDGETS & set(found))
    if len(training) > 1:
        raise MixwellError(f"--budget: {' and '.join(training)} came; expected one of them.")
    return found


def variants(base: Recipe, vary: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Every cell of the grid.

    A value that no cell can take is a mistake and raises `MixwellError`; a single such cell is kept with its error.
    """
    check_vary(vary)
    cells = itertools.product(*vary.values())
    found = [_variant(base, dict(zip(vary, cell))) for cell in cells]
    names = set()
    for variant in found:
        if variant.name in names:
            raise MixwellError(f"--vary: {variant.name} stands twice.")
        names.add(variant.name)
    for path, values in vary.items():
        for value in values:
            own = [variant for variant in found if variant.changes[path] == value]
            if all(variant.error for variant in own):
                raise MixwellError(own[0].error)
    return found


def check_vary(vary: Mapping[str, Sequence[Any]]) -> None:
    """Raise `MixwellError` unless each key has two values or more, and there is one."""
    for path, values in vary.items():
        if not isinstance(values, (list, tuple)) or len(values) < 2:
            raise MixwellError(f"--vary {path}: expected two values or more, got {values!r}.")
    if "seed" in vary:
        raise MixwellError("--vary seed: every variant is run from the same seeds; name them with --seeds.")
    if not vary:
        raise MixwellError("--vary: expected what to vary, such as moe.router=top_k,sinkhorn.")


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
        (value,) = changes.values()
        return _word(value)
    ends = [last_key(path) for path in changes]
    short = {}
    for path, end in zip(changes, ends):
        key = end if ends.count(end) == 1 else path
        short[key] = changes[path]
    return _settings(short)


def last_key(path: str) -> str:
    """`router` of `stages.moe.router`."""
    return path.rpartition(".")[2]


def _settings(values: Mapping[str, Any]) -> str:
    parts = [f"{key}={_word(value)}" for key, value in values.items()]
    return ", ".join(parts)


def _word(value: Any) -> str:
    """A value as short as it can be told from others: a method with its options, a list, a bare word."""
    if isinstance(value, Mapping):
        return _method(value)
    if isinstance(value, (list, tuple)):
        words = ", ".join(map(_word, value))
        return f"[{words}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _method(value: Mapping[str, Any]) -> str:
    """`top_k(k=2)`, or the settings alone where no method is named."""
    options = {key: option for key, option in value.items() if key != "method"}
    settings = _settings(options)
    if "method" not in value:
        return settings
    return f"{value['method']}({settings})" if settings else str(value["method"])


def baseline_of(found: Sequence[Variant], wanted: str | None) -> str:
    """The name of the baseline: the one wanted (values alone will do, such as `top_k,1`), else the first.

    A name that no variant has raises `MixwellError`.
    """
    if wanted is None:
        return found[0].name
    names = [variant.name for variant in found]
    if wanted in names:
        return wanted
    by_values = {}
    for variant in found:
        words = map(_word, variant.changes.values())
        by_values[",".join(words)] = variant.name
    bare = wanted.replace(", ", ",")
    if bare not in by_values:
        raise MixwellError(f"--baseline: no variant {wanted!r}.{suggest(wanted, names)} Variants: {'; '.join(names)}.")
    return by_values[bare]


def with_training(base: Recipe, budget: Mapping[str, float]) -> Recipe:
    """The recipe itself, or with a stage that trains its model where it has no stages and the budget pays for one."""
    training = _training(budget)
    if base.stages or not training:
        return base
    stage = {"id": TRAINED, "train": training}
    return replace(base, stages=[stage])


def _training(budget: Mapping[str, float]) -> dict[str, float]:
    """What of the budget is spent by training."""
    names = [name for name in budget if name in BUDGETS]
    return {name: budget[name] for name in names}


def judged_stage(found: Sequence[Variant], wanted: str | None, threads: int) -> str:
    """The stage whose model is compared: the one wanted, else the last that trains on what the variants differ in.

    A stage that is the same in two variants compares nothing and raises `MixwellError`, and so do variants without a
    common measure.
    """
    able = {variant.name: recipes.stages(variant.recipe) for variant in found if variant.recipe is not None}
    if len(able) < 2:
        raise MixwellError(f"one variant at most can be made; {next(v.error for v in found if v.error)}")
    keys = {name: stage_keys(stages, threads) for name, stages in able.items()}
    if len({own["data"] for own in keys.values()}) > 1:
        raise MixwellError("the variants differ in their data, so that each would be measured on held-out text of its "
                           "own; vary the training's weights of the domains instead (train.weights).")
    first = next(iter(able.values()))
    models = [stage for stage in first if KINDS[stage.kind].evaluated]
    names = [stage.id for stage in models]
    if wanted is not None and wanted not in names:
        raise MixwellError(f"--stage: {wanted!r} is no stage with a model that is evaluated.{suggest(wanted, names)} "
                           f"Such stages: {', '.join(names) or 'none'}.")
    if not names:
        raise MixwellError("the recipe trains and converts nothing; give it a stage, or --budget tokens=1M.")
    chosen = wanted or _last_that_differs(models, keys)
    _check_differs(keys, chosen)
    return chosen


def _last_that_differs(models: Sequence[Stage], keys: Mapping[str, Mapping[str, str]]) -> str:
    """The last training that differs in every variant, else the last such stage, else the last stage."""
    differing, trained = [], []
    for stage in models:
        own = {of_variant.get(stage.id) for of_variant in keys.values()}
        if len(own) < len(keys):
            continue
        differing.append(stage)
        if stage.kind in TRAINING:
            trained.append(stage)
    candidates = trained or differing or models
    return candidates[-1].id


def _check_differs(keys: Mapping[str, Mapping[str, str]], stage: str) -> None:
    first: dict[str, str] = {}
    for name, own in keys.items():
        other = first.setdefault(own[stage], name)
        if other != name:
            raise MixwellError(f"{other} and {name} are the same up to stage {stage}: what is varied does not reach "
                               "it. Name another key, or another stage with --stage.")


def prepared(variant_recipe: Recipe, stage: str, budget: Mapping[str, float], seed: int) -> Recipe:
    """The recipe up to `stage`, with this seed and with the budget of its last training.

    A budget where nothing is trained raises `MixwellError`.
    """
    line = ancestors(recipes.stages(variant_recipe), stage)
    names = {one.id for one in line}
    trained = [one.id for one in line if one.kind in TRAINING]
    training = _training(budget)
    if training and not trained:
        raise MixwellError(f"--budget {next(iter(training))}: nothing is trained on the way to {stage}; leave it out.")
    entries = []
    for entry in variant_recipe.stages:
        if entry["id"] not in names:
            continue
        made = dict(entry)
        if training and entry["id"] == trained[-1]:
            made = sizing.budgeted(entry, training)
        if "seed" in entry:
            made["seed"] = entry["seed"] + seed - variant_recipe.seed
        entries.append(made)
    return replace(variant_recipe, seed=seed, stages=entries)


def ancestors(stages: Sequence[Stage], last: str) -> list[Stage]:
    """The stages that `last` builds on, itself, and those that make the text that it is judged by, in their order."""
    known = {s.id: s for s in stages}
    needed, waiting = set(), [last]
    if KINDS[known[last].kind].evaluated:
        waiting.append("tokens")
    while waiting:
        one = waiting.pop()
        needed.add(one)
        waiting += known[one].inputs.values()
    return [s for s in stages if s.id in needed]
