"""The evidence of the papers' claims on disk: `<folder>/<room>.json`, and the tables that are made from it.

A claim that is run again replaces its own entry and no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixwell.core import machine, units
from mixwell.core.errors import MixwellError
from mixwell.core.files import read_json, write_json, write_text

OUTCOMES = ("held", "did not hold", "not testable here")
Claims = dict[str, dict[str, Any]]  # name of the claim -> `Evidence.to_dict()` with when, where and how long


def read(folder: str | Path, room: str) -> Claims:
    """The entries of a room by claim, sorted; none where there is no file yet."""
    path = Path(folder) / f"{room}.json"
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, Mapping) or not all(map(_is_entry, found.values())):
        raise MixwellError(f"{path} holds no evidence (claims with their outcome); restore it or remove it.")
    return {name: dict(entry) for name, entry in sorted(found.items())}


def _is_entry(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("outcome") in OUTCOMES


def add(folder: str | Path, name: str, found: Mapping[str, Any], threads: int) -> Path:
    """Put one claim's outcome into its room's JSON and regenerate the room's table; returns the JSON's path."""
    room = name.split(".")[0]
    where = {"cpu": machine.cpu_model(), "threads": threads}
    today = datetime.now(UTC).date()
    entry = {**found, "machine": where, "versions": machine.versions(), "date": today.isoformat()}
    entries = read(folder, room) | {name: entry}
    ordered = dict(sorted(entries.items()))
    write_text(Path(folder) / f"{room}.md", page(room, ordered))
    return write_json(Path(folder) / f"{room}.json", ordered)


def page(room: str, entries: Claims) -> str:
    """A room's evidence as a Markdown page: the counts, the table, and the machines it was made on."""
    places = [place for entry in entries.values() if (place := _place(entry))]
    distinct = "; ".join(dict.fromkeys(places))
    measured = f"\nMeasured on: {distinct}.\n" if places else ""
    return (f"# Evidence: {room}\n\n{tally(entries)}\n\nMade by `mixwell claims {room}`; the figures behind it are in "
            f"`{room}.json`. The effect is the method minus the baseline, signed so that positive favours the method, "
            "with its standard deviation over seeds.\n\n"
            f"{table(entries)}{measured}")


def _place(entry: Mapping[str, Any]) -> str:
    """`AMD EPYC, 2 threads, torch 2.13.0`, as far as the entry tells."""
    where = entry.get("machine") or {}
    versions = entry.get("versions")
    parts = [where.get("cpu")]
    if threads := where.get("threads"):
        parts.append(_counted(threads, "thread"))
    if versions:
        parts.append(f"torch {versions['torch']}")
    return ", ".join(part for part in parts if part)


def tally(entries: Claims) -> str:
    """`12 claims: 8 held, 3 did not hold, 1 not testable here.`"""
    found = [entry["outcome"] for entry in entries.values()]
    parts = []
    for outcome in OUTCOMES:
        if count := found.count(outcome):
            parts.append(f"{count} {outcome}")
    number = _counted(len(entries), "claim")
    return f"{number}: {', '.join(parts)}."


def _counted(count: int, word: str) -> str:
    plural = "" if count == 1 else "s"
    return f"{count} {word}{plural}"


def table(entries: Claims) -> str:
    """A Markdown table, a row a claim."""
    head = ("method", "claim", "outcome", "effect", "metric", "seeds", "time", "note")
    rule = ("---",) * len(head)
    rows = [_row(name, entry) for name, entry in entries.items()]
    lines = map(_line, [head, rule, *rows])
    return "".join(lines)


def _row(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The table's cells of one claim."""
    marked = _marked(entry["outcome"])
    seeds = str(entry["seeds"] or "")
    took = units.seconds(entry.get("seconds"))
    return f"`{name}`", entry["claim"], marked, effect(entry), entry["metric"], seeds, took, entry["note"]


def _line(cells: Sequence[str]) -> str:
    safe = map(_cell, cells)
    return f"| {' | '.join(safe)} |\n"


def effect(entry: Mapping[str, Any]) -> str:
    """`+0.031 ± 0.004`; empty where nothing was measured."""
    value, spread = entry["effect"], entry["spread"]
    if not units.is_number(value):
        return ""
    sign = "+" if value > 0 else ""
    gain = f"{sign}{units.number(value)}"
    if not units.is_number(spread):
        return gain
    return f"{gain} ± {units.number(spread, 2)}"


def _marked(outcome: str) -> str:
    return f"**{outcome}**" if outcome == "did not hold" else outcome


def _cell(text: str) -> str:
    """Text that cannot break the table it stands in."""
    one_line = " ".join(text.split())
    return one_line.replace("|", "\\|")
