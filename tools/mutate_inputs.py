"""Mutants of all that mixwell reads from a disk, and what becomes of each: is any worse than refused in one line?

    python tools/mutate_inputs.py                    # 5,000 of them, from seed 0
    python tools/mutate_inputs.py --count 100 --only recipes --first 7

Model folders, recipes, tables with the mixtures fitted to them, and run folders are changed by a seeded generator and
read. Prints the counts by kind, the longest time that one of the kind took, and each fault; ends with 1 where there is
one. `tests/mutations` says what the columns mean.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.mutations import FAULTS, OUTCOMES, REFUSED, Mutants, Outcome
from tests.mutations.folders import Folders
from tests.mutations.models import Models
from tests.mutations.recipes import Recipes
from tests.mutations.tables import Tables

MAKERS = {"models": Models, "recipes": Recipes, "tables": Tables, "folders": Folders}
SHARES = {"models": 0.5, "recipes": 0.2, "tables": 0.2, "folders": 0.1}
SHOWN = 2000  # characters of a fault


def main() -> int:
    """Try the mutants and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="mutants in all")
    parser.add_argument("--first", type=int, default=0, help="seed of the first of each kind; the next have the next")
    parser.add_argument("--only", choices=MAKERS, help="mutants of these alone")
    parser.add_argument("--refusals", action="store_true", help="print every refusal, too")
    asked = parser.parse_args()
    names = [asked.only] if asked.only else list(MAKERS)
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        for name in names:
            count = asked.count if asked.only else round(asked.count * SHARES[name])
            folder = Path(place) / name
            folder.mkdir()
            mutants = MAKERS[name](folder)
            found += _tried(mutants, name, range(asked.first, asked.first + count), asked.refusals)
            if isinstance(mutants, Models):
                mutants.close()
    _print_counts(found)
    return int(any(one.outcome in FAULTS for one in found))


def _tried(mutants: Mutants, name: str, seeds: range, refusals: bool) -> list[Outcome]:
    found = []
    for seed in seeds:
        one = mutants.try_one(seed)
        found.append(one)
        if one.outcome in FAULTS or (refusals and one.outcome == REFUSED):
            print(f"{name} {seed}: {one.kind}: {one.outcome}: {one.words[-SHOWN:]}", flush=True)
    return found


def _print_counts(found: list[Outcome]) -> None:
    kinds = dict.fromkeys(one.kind for one in found)
    names = "".join(f"{name:>11}" for name in OUTCOMES)
    print(f"{'':<24}{names}{'longest':>11}")
    for kind in kinds:
        _print_line(kind, [one for one in found if one.kind == kind])
    _print_line("together", found)


def _print_line(kind: str, found: list[Outcome]) -> None:
    counts = Counter(one.outcome for one in found)
    longest = max(one.seconds for one in found)
    numbers = "".join(f"{counts[name]:>11}" for name in OUTCOMES)
    print(f"{kind:<24}{numbers}{longest:>9.1f} s")


if __name__ == "__main__":
    sys.exit(main())
