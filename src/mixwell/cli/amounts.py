"""Several numbers on a command line: `1,2,4`, `flops=1e21,memory=80G`, `e=1,2,4`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mixwell.core import units
from mixwell.core.errors import MixwellError, shown, suggest
from mixwell.formats.amounts import SUCH_AS, number


def numbers(text: str, where: str, such_as: str = SUCH_AS) -> list[float]:
    """`1,2,4` as numbers; at least one."""
    return [number(part, where, such_as) for part in text.split(",")]


def amounts(text: str, known: Collection[str], where: str) -> dict[str, float]:
    """`flops=1e21,memory=80G` as numbers by name; unknown names raise `MixwellError`."""
    found = {}
    for name, value in units.pairs(text).items():
        check_known(name, known, where)
        found[name] = number(value, f"{where} {name}")
    return found


def columns(words: Sequence[str], known: Collection[str], where: str) -> dict[str, list[float]]:
    """`e=1,2,4` each, as numbers by name; unknown names raise `MixwellError`."""
    found = {}
    for word in words:
        column, separator, values = word.partition("=")
        if not separator:
            raise MixwellError(f"{where}: expected COLUMN=A,B,..., such as e=1,2,4, got {shown(word)}.")
        name = column.strip()
        check_known(name, known, where)
        found[name] = numbers(values, f"{where} {name}")
    return found


def check_known(name: str, known: Collection[str], where: str) -> None:
    """Raise `MixwellError` for a name that is none of those known."""
    if name not in known:
        there = ", ".join(known) or "none"
        raise MixwellError(f"{where}: unknown {shown(name)}.{suggest(name, known)} Known: {there}.")
