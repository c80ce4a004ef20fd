"""Which models a stage reads, by the role that each has there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.core.errors import MixwellError, shown, suggest
from mixwell.run.stages import KINDS, Stage


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


def check_model(source: Any, found: Mapping[str, Stage], where: str) -> None:
    """Raise where a name is that of no stage above, or of one that makes no model."""
    models = [id for id, stage in found.items() if KINDS[stage.kind].makes_model]
    if source in models:
        return
    named = found.get(source) if isinstance(source, str) else None
    what = "is no stage above this one" if named is None else "makes no model"
    hint = suggest(str(source), models)
    raise MixwellError(f"{where}: {shown(source)} {what}.{hint} Models: {', '.join(models)}.")
