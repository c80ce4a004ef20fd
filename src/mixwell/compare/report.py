"""The report of a comparison: one HTML file in the shell of the run report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixwell.compare import searching
from mixwell.compare import view as views
from mixwell.compare.charts import curves, forest, loads
from mixwell.compare.results import Comparison, read
from mixwell.core import files
from mixwell.report import plots
from mixwell.report.page import facts, machine, render
from mixwell.report.records import recipe_text

TITLES = {"table": "Result", "search": "Search", "curves": "Learning curves", "cost": "Cost", "domains": "By domain",
          "loads": "Expert load", "settings": "Variants", "recipe": "Recipe", "machine": "Machine and versions"}


def build(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the comparison in `folder` anew, by default to its `report.html`; returns its path.

    A folder without a comparison that can be read raises `MixwellError`.
    """
    path = out or Path(folder) / "report.html"
    page = render("compare.html", **contents(read(folder)))
    return files.write_text(path, page)


def contents(found: Comparison) -> dict[str, Any]:
    """Everything the template shows."""
    names = [result.name for result in found.ranked]
    colors = plots.slots([found.baseline, *names])
    record = found.record
    seeds = ", ".join(map(str, found.seeds))
    times = {"wall time of the last call": record["wall_seconds"]}
    sections: dict[str, Any] = {
        "table": views.table(found),
        "search": searching.rows(record.get("search", {})),
        "curves": curves(found, colors),
        "cost": views.cost(found),
        "domains": views.domains(found),
        "loads": loads(found),
        "settings": views.settings(found),
        "recipe": recipe_text(record["recipe"]),
        "machine": machine(record["machine"], record["versions"], seeds, record["started"], times)}
    return {
        "title": views.title(found),
        "facts": facts(record["machine"], record["started"]),
        "lead": views.lead(found),
        "notes": views.notes(found),
        "searched": searching.statement(record.get("search", {})),
        "forest": forest(found, colors),
        "p_label": views.p_label(found),
        "failures": views.failures(found),
        "waiting": views.waiting(found),
        "baseline": found.baseline,
        "toc": [(name, TITLES[name]) for name, part in sections.items() if part],
        **sections}
