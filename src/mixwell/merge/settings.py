"""Settings of a merge's file: numbers, gradients over layers, and filters by tensor name, as mergekit reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mixwell.core.errors import MixwellError, shown

Scope = Mapping[str, Any] | None  # parameters of one level of the file


def evaluated(setting: Any, name: str, t: float) -> Any:
    """What a setting says of the tensor `name` at the depth `t`, 0 to 1; None where none of its filters fits.

    A list of numbers is a gradient over the depth, a list with `value` in its entries a choice by `filter`, of which
    the first that is a part of the name, or is left out, counts.
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return _scalar(setting)
    if any(isinstance(entry, Mapping) for entry in setting):
        return _filtered(setting, name, t)
    return _gradient([_scalar(value) for value in setting], t) if setting else None


def _filtered(entries: list[Any], name: str, t: float) -> Any:
    for entry in entries:
        if not isinstance(entry, Mapping) or "value" not in entry or set(entry) - {"value", "filter"}:
            raise MixwellError(f"expected entries such as {{filter: mlp, value: 0.5}}, got {shown(entry)}.")
        part = entry.get("filter")
        if part in (None, "*") or str(part) in name:
            return evaluated(entry["value"], name, t)
    return None


def _gradient(values: list[Any], t: float) -> Any:
    """Between two neighbours in the list, or one of them where they are no numbers."""
    place = t * (len(values) - 1)
    below = int(place)
    if not all(_is_number(value) for value in values):
        return values[below]
    above = min(below + 1, len(values) - 1)
    share = place - below
    start, end = values[below], values[above]
    return (1 - share) * start + share * end


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float))


def _scalar(value: Any) -> Any:
    """Numbers that YAML 1.1 reads as text are numbers."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise MixwellError(f"expected a number, a list of them, or filters with values, got {shown(value)}.")


def looked_up(parameter: str, scopes: Iterable[Scope], name: str, t: float) -> Any:
    """A parameter's value for a tensor: that of the first scope that says something; None where none does."""
    for scope in scopes:
        if scope is not None and parameter in scope:
            try:
                value = evaluated(scope[parameter], name, t)
            except MixwellError as error:
                raise MixwellError(f"parameters.{parameter}: {error}") from error
            if value is not None:
                return value
    return None
