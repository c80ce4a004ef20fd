"""The papers' claims, each as an experiment: `claims/<room>/<method>.py` holds `claim(bench) -> Evidence`.

A claim takes at most 120 seconds on two cores, three or more seeds, and one of three outcomes: held, did not hold, not
testable here.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixwell.core.errors import MixwellError, suggest
from mixwell.core.evidence import Evidence

if TYPE_CHECKING:
    from mixwell.claims.bench import Bench

ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Claim:
    """A claim file: `experts.switch` is claims/experts/switch.py."""

    name: str

    def run(self, bench: Bench) -> Evidence:
        """Import the file and try its claim."""
        return importlib.import_module(f"mixwell.claims.{self.name}").claim(bench)


def names() -> list[str]:
    """The names of all claims, sorted."""
    found = []
    for path in ROOT.glob("*/*.py"):
        if not path.name.startswith("_"):
            inside = path.relative_to(ROOT).with_suffix("")
            found.append(".".join(inside.parts))
    return sorted(found)


def claims(prefix: str = "") -> tuple[Claim, ...]:
    """The claims whose name starts with `prefix` (a room, or room and method); none is an error with the nearest."""
    every = names()
    stem = f"{prefix}." if prefix else ""
    found = tuple(Claim(name) for name in every if f"{name}.".startswith(stem))
    if found:
        return found
    rooms = {name.split(".")[0] for name in every}
    raise MixwellError(f"no claims for {prefix!r}.{suggest(prefix, [*every, *rooms])}")


def run(chosen: tuple[Claim, ...], bench: Bench,
        failed: Callable[[Claim, Exception], None]) -> Iterator[tuple[Claim, dict[str, Any]]]:
    """Try the claims one after another; one that breaks is handed to `failed` and the rest goes on."""
    for one in chosen:
        started = time.perf_counter()
        try:
            evidence = one.run(bench)
        except Exception as error:  # a broken claim must not hide the others' outcomes
            failed(one, error)
            continue
        yield one, {**evidence.to_dict(), "seconds": round(time.perf_counter() - started, 1)}
