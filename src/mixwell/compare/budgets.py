"""Limits as people write them: `tokens=1M`, `flops=2T,bytes=20M`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from mixwell.core import units
from mixwell.core.errors import MixwellError, shown, suggest
from mixwell.run.recipe import counted


def amounts(budget: Mapping[str, Any] | str, known: Collection[str]) -> dict[str, float]:
    """The limits as finite numbers by name; a name that is not `known`, or no number, raises `MixwellError`."""
    given = units.pairs(budget) if isinstance(budget, str) else dict(budget)
    found = {}
    for name, value in counted(given).items():
        found[name] = _amount(name, value, known)
    return found


def _amount(name: str, value: Any, known: Collection[str]) -> float:
    if name not in known:
        raise MixwellError(f"--budget: unknown {shown(name)}.{suggest(name, known)} Known: {', '.join(known)}.")
    try:
        amount = float(value)
    except (TypeError, ValueError, OverflowError):
        amount = math.nan
    if not math.isfinite(amount):
        raise MixwellError(f"--budget {name}: expected a number such as 1M, got {shown(value)}.")
    return amount
