"""The evidence of the papers' claims on disk: `<folder>/<room>.json`, and the tables that are made from it.

A claim that is run again replaces its own entry and no other.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    if not isinstance(found, Mapping) or not all(isinstance(e, Mapping) and e.get("outcome") in OUTCOMES
                                                 for e in found.values()):
        raise MixwellError(f"{path} holds no evidence (claims with their outcome); restore it or remove it.")
    return {name: dict(entry) for name, entry in sorted(found.items())}


def add(folder: str | Path, name: str, found: Mapping[str, Any], threads: int) -> Path:
    """Put one claim's outcome into its room's JSON and regenerate the room's table; returns the JSON's path."""
    room = name.split(".")[0]
    where = {"cpu": machine.cpu_model(), "threads": threads}
    entry = {**found, "machine": where, "versions": machine.versions(),
             "date": datetime.now(UTC).date().isoformat()}
    entries = dict(sorted({**read(folder, room), name: entry}.items()))
    write_text(Path(folder) / f"{room}.md", page(room, entries))
    return write_json(Path(folder) / f"{room}.json", entries)


def page(room: str, entries: Claims) -> str:
    """A room's evidence as a Markdown page: the counts, the table, and the machines it was made on."""
    places = list(dict.fromkeys(place for e in entries.values() if (place := _place(e))))
    measured = f"\nMeasured on: {'; '.join(places)}.\n" if places else ""
    return (f"# Evidence: {room}\n\n{tally(entries)}\n\nMade by `mixwell claims {room}`; the figures behind it are in "
            f"`{room}.json`. The effect is the method minus the baseline, signed so that positive favours the method, "
            "with its standard deviation over seeds.\n\n"
            f"{table(entries)}{measured}")


def _place(entry: Mapping[str, Any]) -> str:
    """`AMD EPYC, 2 threads, torch 2.13.0`, as far as the entry tells."""
    where, threads = entry.get("machine") or {}, (entry.get("machine") or {}).get("threads")
    parts = [where.get("cpu"), f"{threads} thread{'' if threads == 1 else 's'}" if threads else None,
             f"torch {entry['versions']['torch']}" if entry.get("versions") else None]
    return ", ".join(part for part in parts if part)


def tally(entries: Claims) -> str:
    """`12 claims: 8 held, 3 did not hold, 1 not testable here.`"""
    counts = {o: sum(e["outcome"] == o for e in entries.values()) for o in OUTCOMES}
    parts = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    return f"{len(entries)} claim{'' if len(entries) == 1 else 's'}: {parts}."


def table(entries: Claims) -> str:
    """A Markdown table, a row a claim."""
    head = ("method", "claim", "outcome", "effect", "metric", "seeds", "time", "note")
    rows = [(f"`{name}`", e["claim"], _marked(e["outcome"]), effect(e), e["metric"], str(e["seeds"] or ""),
             units.seconds(e.get("seconds")), e["note"]) for name, e in entries.items()]
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def effect(entry: Mapping[str, Any]) -> str:
    """`+0.031 ± 0.004`; empty where nothing was measured."""
    value, spread = entry["effect"], entry["spread"]
    if not units.is_number(value):
        return ""
    sign = "+" if value > 0 else ""
    return f"{sign}{units.number(value)}" + (f" ± {units.number(spread, 2)}" if units.is_number(spread) else "")


def _marked(outcome: str) -> str:
    return f"**{outcome}**" if outcome == "did not hold" else outcome


def _cell(text: str) -> str:
    """Text that cannot break the table it stands in."""
    return " ".join(text.split()).replace("|", "\\|")
