"""The recipe `conversions` run whole: bits per byte of held-out text by domain at each of its stages.

A dense model becomes a mixture by four ways, is tuned, merged, pruned and made dense again; the figures are those that
the run's report shows.

    python benchmarks/conversions.py --save
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from _parts import parser, save

from mixwell.report.records import read_run
from mixwell.run import engine, recipe

RECIPE = "conversions"


def figures(folder: Path) -> list[dict[str, Any]]:
    """What each stage with a model came to, in the recipe's order."""
    found = []
    for stage in read_run(folder).stages:
        if not stage.evaluation:
            continue
        told = {"id": stage.id, "bits_per_byte": stage.evaluation["bits_per_byte"], "mean": stage.evaluation["mean"],
                "parameters": stage.result["parameters"], "active_parameters": stage.result["active_parameters"],
                "tokens": stage.result.get("tokens", 0)}
        found.append(told)
    return found


def main() -> None:
    """Run, print and, where asked for, save."""
    options = parser(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory(prefix="mixwell-conversions-") as scratch:
        folder = Path(scratch) / RECIPE
        started = time.perf_counter()
        engine.run(recipe.read(RECIPE), folder)
        seconds = time.perf_counter() - started
        stages = figures(folder)
    for told in stages:
        print(f"{told['id']:<16} {told['mean']:.3f}   {told['parameters']:>9,} parameters")
    print(f"{seconds:.0f} s")
    save(RECIPE, options, {"seconds": seconds, "stages": stages})


if __name__ == "__main__":
    main()
