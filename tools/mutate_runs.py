"""Mutants of recipes, run folders and tables: how many are refused in one line, and whether any is worse than that.

    python tools/mutate_runs.py                      # 2,500 of them, from seed 0
    python tools/mutate_runs.py --count 100 --only recipes --first 7

Prints the counts by kind, and what each traceback, hang and silent change was; ends with 1 where there is one.
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

from tests.mutations import OUTCOMES, REFUSED, SAME, Outcome
from tests.mutations.folders import Folders
from tests.mutations.recipes import Recipes
from tests.mutations.tables import Tables

MAKERS = {"recipes": Recipes, "folders": Folders, "tables": Tables}
SHARES = {"recipes": 0.5, "folders": 0.2, "tables": 0.3}


def main() -> int:
    """Try the mutants and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2500, help="mutants in all")
    parser.add_argument("--first", type=int, default=0, help="seed of the first; the next have the next")
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
            found += _try(MAKERS[name](folder), name, asked.first, count, asked.refusals)
    _print_counts(found)
    return int(any(one.outcome not in (REFUSED, SAME) for one in found))


def _try(maker: Recipes | Folders | Tables, name: str, first: int, count: int, refusals: bool) -> list[Outcome]:
    found = []
    for seed in range(first, first + count):
        one = maker.try_one(seed)
        found.append(one)
        bad = one.outcome not in (REFUSED, SAME)
        if bad or (refusals and one.outcome == REFUSED):
            print(f"{name} {seed}: {one.kind}: {one.outcome}: {one.words}", flush=True)
    return found


def _print_counts(found: list[Outcome]) -> None:
    counts = Counter((one.kind, one.outcome) for one in found)
    kinds = sorted({one.kind for one in found})
    print(f"{'':<26}" + "".join(f"{name:>21}" for name in OUTCOMES))
    for kind in kinds:
        print(f"{kind:<26}" + "".join(f"{counts[kind, name]:>21}" for name in OUTCOMES))
    print(f"{'together':<26}" + "".join(f"{sum(one.outcome == name for one in found):>21}" for name in OUTCOMES))


if __name__ == "__main__":
    sys.exit(main())
