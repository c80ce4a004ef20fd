"""The evidence on disk: `<folder>/<full name of the method>.json`, a file a claim, written again after every seed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from mixwell.claims import sources
from mixwell.claims.claim import Claim
from mixwell.claims.record import OPEN, UNTESTABLE, Record, Trial, Try, tuning
from mixwell.claims.rule import LEVEL, LOOKS, Outcome
from mixwell.core import machine
from mixwell.core.errors import MixwellError
from mixwell.core.files import read_json, write_text

OUTCOMES = (*get_args(Outcome), UNTESTABLE, OPEN)
Entry = dict[str, Any]


def path_of(folder: str | Path, name: str) -> Path:
    """The file of a claim."""
    return Path(folder) / f"{name}.json"


def read(folder: str | Path) -> dict[str, Entry]:
    """Every claim's entry by its name, sorted."""
    files = sorted(Path(folder).glob("*.json"))
    return {path.stem: read_entry(path) for path in files}


def read_entry(path: Path) -> Entry:
    """One entry; a file that holds none raises `MixwellError`."""
    found = read_json(path)
    if not isinstance(found, Mapping) or found.get("outcome") not in OUTCOMES:
        known = ", ".join(OUTCOMES)
        raise MixwellError(f"{path} holds no evidence (expected an outcome: {known}); restore it or remove it.")
    return dict(found)


def stale(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries whose figures another source of the claim or the method gave, which are not gone on with."""
    found = {}
    for name, entry in entries.items():
        if "source" not in entry:
            continue
        current = sources.source(name)
        if entry["source"] != current:
            found[name] = entry
    return found


def resumed(folder: str | Path, name: str, claim: Claim, source: str) -> Record:
    """What is there of a claim; nothing where it was made by another source of the claim or the method."""
    fresh = Record(name, claim, source)
    path = path_of(folder, name)
    if not path.exists():
        return fresh
    entry = read_entry(path)
    return fresh if entry.get("source") != source else restored(entry, fresh)


def restored(entry: Entry, fresh: Record) -> Record:
    """The record that an entry was written from."""
    for side, tuned in entry["tuning"].items():
        fresh.tries[side] = [_as_try(row) for row in tuned["tries"]]
    columns = zip(entry["tried"], entry["seconds_a_seed"])
    for place, (seed, seconds) in enumerate(columns):
        values = {name: series[place] for name, series in entry["values"].items()}
        fresh.trials[seed] = Trial(values, seconds)
    if entry["outcome"] == UNTESTABLE:
        fresh.untestable = entry["note"]
    return fresh


def _as_try(row: Mapping[str, Any]) -> Try:
    setting = dict(row)
    score = setting.pop("score")
    seconds = setting.pop("seconds")
    return Try(setting, score, seconds)


def entry(record: Record) -> Entry:
    """A record as its file holds it, with what decided, and when and where."""
    today = datetime.now(UTC).date()
    where = {"cpu": machine.cpu_model(), "threads": 1}
    seeds = sorted(record.trials)
    return {"claim": record.claim.text, "metric": record.claim.metric, **record.judged,
            "rule": {"looks": LOOKS, "level": LEVEL, "comparisons": len(record.claim.comparisons)},
            "tuning": tuning(record.tries, record.chosen), "tried": seeds,
            "seconds_a_seed": [record.trials[seed].seconds for seed in seeds], "values": record.values,
            "seconds": round(record.seconds, 1), "machine": where, "versions": machine.versions(),
            "date": today.isoformat(), "source": record.source}


def write(folder: str | Path, name: str, found: Entry) -> Path:
    """Put an entry in its place, whole; returns the file."""
    return write_text(path_of(folder, name), text(found))


def text(found: Entry) -> str:
    """JSON with a series on one line."""
    plain = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[[^\[\]{}\"]*\]", _one_line, plain) + "\n"


def _one_line(found: re.Match[str]) -> str:
    inner = found[0].strip("[]")
    numbers = " ".join(inner.split())
    return f"[{numbers}]"
