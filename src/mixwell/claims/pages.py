"""The tables that are made from the evidence: a page a room beside the files, and the counts in the README."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mixwell.claims import evidence, judging
from mixwell.claims.evidence import OUTCOMES, Entry
from mixwell.claims.rule import ERROR, LOOKS, POWER
from mixwell.core import units
from mixwell.core.errors import MixwellError
from mixwell.core.files import write_text

START, END = "<!-- claims -->", "<!-- /claims -->"
HEAD = ("claim of", "claim", "outcome", "gain", "margin", "metric", "seeds", "time", "note")
MARKED = ("contradicted",)
Entries = Mapping[str, Entry]


def write(folder: Path, readme: Path) -> list[Path]:
    """Write all pages of `folder`, and the README's block where there is such a file; returns what was written."""
    entries = evidence.read(folder)
    written = [write_text(path, words) for path, words in pages(folder, entries).items()]
    if readme.exists():
        before = readme.read_text(encoding="utf-8")
        written.append(write_text(readme, filled(before, entries)))
    return written


def pages(folder: Path, entries: Entries) -> dict[Path, str]:
    """The page of every room."""
    rooms = by_room(entries)
    return {folder / f"{room}.md": page(room, own) for room, own in rooms.items()}


def by_room(entries: Entries) -> dict[str, dict[str, Entry]]:
    """Room -> its claims."""
    found: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        room = name.partition(".")[0]
        found.setdefault(room, {})[name] = entry
    return found


def page(room: str, entries: Entries) -> str:
    """A room's evidence as Markdown: the counts, how it was decided, the table, and the machines it was made on."""
    counts = tally(entry["outcome"] for entry in entries.values())
    places = [place for entry in entries.values() if (place := _place(entry))]
    distinct = "; ".join(dict.fromkeys(places))
    measured = f"\nMeasured on: {distinct}.\n" if places else ""
    return (f"# Evidence: {room}\n\n{counts}\n\nMade by `mixwell claims {room}`; the figures, seed by seed, are in the "
            f"JSON files beside this page. {rule()}\n\n{table(entries)}{measured}")


def rule() -> str:
    """How claims are decided, in words."""
    looks = ", ".join(map(str, LOOKS))
    power = ", ".join(f"{chance:.0%} at {size:g}" for size, chance in POWER.items())
    return (f"The gain is what the method is better by at one seed; its interval is Student's, looked at after {looks} "
            f"seeds, with {ERROR:.0%} of wrong decisions over all looks. A claim held where the interval lies above "
            "the margin, is contradicted where it lies below, and undecided else; so do its conditions. Chance that a "
            f"true claim is found, by its gain over the margin in standard deviations between seeds: {power}.")


def _place(entry: Entry) -> str:
    """`AMD EPYC, torch 2.13.0`, as far as the entry tells."""
    where, versions = entry.get("machine"), entry.get("versions")
    if not where or not versions:
        return ""
    return f"{where['cpu']}, torch {versions['torch']}"


def tally(outcomes: Iterable[str]) -> str:
    """`12 claims: 8 held, 3 contradicted, 1 undecided.`"""
    found = list(outcomes)
    number = units.counted(len(found), "claim")
    if not found:
        return f"{number}."
    counted = Counter(found)
    counts = [f"{counted[outcome]} {outcome}" for outcome in OUTCOMES if outcome in counted]
    return f"{number}: {', '.join(counts)}."


def table(entries: Entries) -> str:
    """A Markdown table, a row a claim."""
    rows = [_row(name, entry) for name, entry in entries.items()]
    return lined([HEAD, *rows])


def _row(name: str, entry: Entry) -> tuple[str, ...]:
    outcome = entry["outcome"]
    marked = f"**{outcome}**" if outcome in MARKED else outcome
    seeds = str(entry["seeds"] or "")
    took = units.seconds(entry["seconds"]) if "seconds" in entry else ""
    return (f"`{name}`", entry["claim"], marked, gain(entry), margin(entry), entry["metric"], seeds, took,
            entry["note"])


def gain(entry: Entry) -> str:
    """`+0.031 (0.024 to 0.038)`; empty where nothing was decided."""
    return judging.gain(entry) if "interval" in entry else ""


def margin(entry: Entry) -> str:
    """The gain that was asked for."""
    if "margin" not in entry:
        return ""
    return judging.amount(entry["margin"], entry["relative"])


def lined(rows: Sequence[Sequence[str]]) -> str:
    """Rows as Markdown, the first one as the head."""
    head, *rest = rows
    rule = ["---"] * len(head)
    return "".join(_line(row) for row in [head, rule, *rest])


def _line(cells: Sequence[str]) -> str:
    safe = map(_cell, cells)
    return f"| {' | '.join(safe)} |\n"


def _cell(text: str) -> str:
    """Text that cannot break the table it stands in."""
    one_line = " ".join(text.split())
    return one_line.replace("|", "\\|")


def filled(readme: str, entries: Entries) -> str:
    """The README with today's counts between its markers; without markers it raises `MixwellError`."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise MixwellError(f"README.md lacks the lines {START} and {END}, between which the claims' counts stand.")
    return f"{before}{START}\n{counts(entries)}{END}{after}"


def counts(entries: Entries) -> str:
    """How many claims came out how, by room."""
    rows: list[Sequence[str]] = [("room", *OUTCOMES)]
    for room, own in by_room(entries).items():
        link = f"[{room}](docs/evidence/{room}.md)"
        rows.append(_counted(link, own))
    rows.append(_counted("all", entries))
    return lined(rows)


def _counted(first: str, entries: Entries) -> list[str]:
    found = Counter(entry["outcome"] for entry in entries.values())
    return [first, *(str(found[outcome]) for outcome in OUTCOMES)]
