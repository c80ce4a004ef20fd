"""What a stage reads, by the role that each input has there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from mixwell.core.errors import MixwellError, shown, suggest
from mixwell.run.stages import KINDS, Kind, Stage


def inputs_of(kind: Kind, entry: Mapping[str, Any], found: Mapping[str, Stage], where: str) -> dict[str, str]:
    """Role -> the id of the stage that fills it."""
    if "from" in entry and "model" not in kind.roles:
        raise MixwellError(f"{where}.from: this stage starts from nothing; leave `from` out.")
    sources = {role: role for role in kind.roles}
    sources |= text_ids(entry)
    if kind.many:
        named = models_of(entry, found, where)
        _check_beside(kind, named.values(), found, where)
        return sources | named
    source = entry.get("from", "model")
    check_model(source, found, f"{where}.from")
    sources["model"] = source
    _check_beside(kind, [source], found, where)
    return {role: sources[role] for role in kind.roles}


def _check_beside(kind: Kind, sources: Iterable[str], found: Mapping[str, Stage], where: str) -> None:
    """Raise where a stage would leave out the adapter that stands beside a model it reads."""
    if kind.reads_beside or "model" not in kind.roles:
        return
    for source in sources:
        if found[source].kind == "adapt" and not found[source].config.merged:
            raise MixwellError(f"{where}.from: {shown(source)} keeps its adapter beside the base, and only `evaluate` "
                               "and `sample` read it so; start from its base, or from an adapter that is merged.")


def text_ids(entry: Mapping[str, Any]) -> dict[str, str]:
    """Role -> the stage that fills it with the entry's text."""
    if entry.get("data") is None:
        return {"data": "data", "tokens": "tokens"}
    stem = side_name(str(entry.get("id")))
    return {"data": f"{stem}-data", "tokens": f"{stem}-tokens"}


def side_name(id: str) -> str:
    """The id without its seed: `moe` of `moe-s1`."""
    return re.sub(r"-s\d+$", "", id)


def models_of(entry: Mapping[str, Any], found: Mapping[str, Stage], where: str) -> dict[str, str]:
    """Role -> stage of the models that are merged, in their order, and of their base."""
    named = entry.get("from", "model")
    listed = named if isinstance(named, list) else [named]
    if not listed:
        raise MixwellError(f"{where}.from: expected the models to merge, such as [code, notes].")
    roles = {}
    for place, source in enumerate(listed):
        check_model(source, found, f"{where}.from")
        roles["model" if place == 0 else f"model {place + 1}"] = source
    if entry.get("base") is not None:
        check_model(entry["base"], found, f"{where}.base")
        roles["base"] = entry["base"]
    return roles


def mixture_of(weights: Any, found: Mapping[str, Stage], where: str) -> dict[str, str]:
    """Role -> stage of the weights that a training takes from another stage; none where they are numbers."""
    if not isinstance(weights, str):
        return {}
    chosen = [id for id, stage in found.items() if stage.kind == "mix"]
    if weights not in chosen:
        raise MixwellError(f"{where}: {shown(weights)} is no `mix` stage above this one.{suggest(weights, chosen)} "
                           f"Expected a share for each domain, or one of: {', '.join(chosen) or 'none'}.")
    return {"mixture": weights}


def for_trainings(stage: Stage, found: Mapping[str, Stage]) -> Stage:
    """A mixture without `tokens` gets those of the longest training that takes its weights."""
    if stage.kind != "mix" or stage.config.tokens is not None:
        return stage
    takers = [one for one in found.values() if one.inputs.get("mixture") == stage.id]
    budgets = [one.config.tokens for one in takers if one.config.tokens is not None]
    longest = max(budgets, default=None)
    return replace(stage, config=replace(stage.config, tokens=longest))


def check_model(source: Any, found: Mapping[str, Stage], where: str) -> None:
    """Raise where a name is that of no stage above, or of one that makes no model."""
    models = [id for id, stage in found.items() if KINDS[stage.kind].makes_model]
    if source in models:
        return
    named = found.get(source) if isinstance(source, str) else None
    what = "is no stage above this one" if named is None else "makes no model"
    hint = suggest(str(source), models)
    raise MixwellError(f"{where}: {shown(source)} {what}.{hint} Models: {', '.join(models)}.")
