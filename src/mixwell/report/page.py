"""The report of a run: one HTML file that needs nothing outside itself.

`build` reads a run's records, has every section computed from what the stages wrote, and renders
`templates/report.html`. What a run does not have (a mixture of experts, receipts, a second branch, samples) is left out
of the page. All text passes through Jinja2's autoescape; only the fragments of `plots` are taken as HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mixwell.core import files, units
from mixwell.report import plots
from mixwell.report.data import data
from mixwell.report.experts import expert_load
from mixwell.report.headline import headline
from mixwell.report.receipts import receipts
from mixwell.report.records import RunRecord, StageRecord, figure, read_run, recipe_text
from mixwell.report.training import colors, loss, quality

TITLES = {"loss": "Loss", "quality": "Bits per byte", "experts": "Expert load", "data": "Data",
          "receipts": "Receipts and sizes", "stages": "Stages", "lineage": "Lineage", "samples": "Samples",
          "recipe": "Recipe", "machine": "Machine and versions"}


def build(run: str | Path, out: str | Path) -> Path:
    """Write the report of the run folder `run` to the file `out` (or `report.html` in it, where it is a folder).

    Returns the file written. A folder without a whole run raises `MixwellError`.
    """
    path = Path(out) / "report.html" if Path(out).is_dir() else Path(out)
    return files.write_text(path, render("report.html", **contents(read_run(run))))


def render(template: str, **context: Any) -> str:
    """Render a template of this folder; autoescape is on, an undefined name is an error."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mixwell.report", "templates"), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**context)


def contents(run: RunRecord) -> dict[str, Any]:
    """Everything the template shows: plain text, tables as rows of text, charts as `Markup`; empty where absent."""
    slot = colors(run)
    sections: dict[str, Any] = {
        "loss": loss(run, slot), "quality": quality(run, slot), "experts": expert_load(run), "data": data(run),
        "receipts": receipts(run), "stages": stages(run), "lineage": lineage(run, slot), "samples": samples(run),
        "recipe": recipe_text(run.recipe),
        "machine": machine(run.machine, run.versions, _seeds(run.seeds), run.started,
                           {"time in all stages": run.seconds, "wall time of the last call": run.wall_seconds})}
    return {"title": run.name, "facts": facts(run.machine, run.started, run.seconds, _dtypes(run)),
            "headline": headline(run), "toc": [(name, TITLES[name]) for name, part in sections.items() if part],
            **sections}


def facts(computer: Mapping[str, Any], started: str, seconds: float | None = None, more: str = "") -> str:
    """One line under the title: when, how long, on what."""
    threads = computer.get("threads") or computer.get("cores")
    parts = [started[:16].replace("T", " "), f"{units.seconds(seconds)} in all" if seconds is not None else "",
             str(computer.get("cpu") or ""), str(computer.get("instructions") or ""),
             f"{threads} thread{'' if threads == 1 else 's'}" if threads else "", more]
    return " · ".join(part for part in parts if part)


def _dtypes(run: RunRecord) -> str:
    """`trained in bf16`"""
    found = [str(s.result.get("dtype") or s.config.get("dtype") or "") for s in run.stages if s.trains]
    known = [name for name in dict.fromkeys(found) if name]
    return f"trained in {' and '.join(known)}" if known else ""


def stages(run: RunRecord) -> list[list[Any]]:
    """Every stage with tokens, FLOPs, memory, time and time of its evaluation, each as (actual, predicted)."""
    forms = {"tokens": units.si, "flops": lambda v: units.si(v, "FLOP"), "peak_bytes": lambda v: units.si(v, "B"),
             "seconds": units.seconds}
    rows = []
    for s in run.stages:
        pairs = [tuple(form(v) if units.is_number(v := side.get(name)) else "" for side in (s.actual, s.predicted))
                 for name, form in forms.items()]
        weighed = (s.evaluation.get("seconds"), (s.evaluation.get("predicted") or {}).get("seconds"))
        times = tuple(units.seconds(v) if units.is_number(v) else "" for v in weighed)
        rows.append([s.id, s.method or s.kind, *pairs, times])
    return rows


def lineage(run: RunRecord, slot: Mapping[str, int]) -> Markup:
    """From data to final models, each branch in its own lane."""
    nodes = []
    for stage in run.stages:
        parent = run.parent(stage)
        others = [s.id for s in run.inputs(stage) if parent is None or s.id != parent.id]
        detail = [stage.method or stage.kind, f"with {', '.join(others)}" if others else "",
                  _parameters(stage) if stage.makes_model else "",
                  f"{units.si(figure(stage.result, 'tokens'))} tokens" if stage.trains else "",
                  f"key {stage.key[:8]}"]
        nodes.append(plots.Node(name=stage.id, title=stage.id, detail=" · ".join(d for d in detail if d),
                                parent=parent.id if parent else "", slot=slot.get(stage.id, plots.NUM_SLOTS)))
    return plots.lanes(nodes) if nodes else Markup("")


def _parameters(stage: StageRecord) -> str:
    every, active = stage.result.get("parameters"), stage.result.get("active_parameters")
    if not units.is_number(every):
        return ""
    part = f" ({units.si(active)} active)" if units.is_number(active) and active != every else ""
    return f"{units.si(every)} parameters{part}"


def samples(run: RunRecord) -> list[dict[str, Any]]:
    """Sampled texts by stage, the prompt apart from what the model wrote."""
    groups = []
    for stage in run.stages:
        parent = run.parent(stage)
        if texts := [(e["prompt"], e["text"]) for e in stage.result.get("samples", [])]:
            groups.append({"name": stage.id, "model": parent.id if parent else "", "texts": texts})
    return groups


def machine(computer: Mapping[str, Any], versions: Mapping[str, str], seeds: str, started: str,
            times: Mapping[str, float]) -> list[tuple[str, str]]:
    """Machine, versions, seeds and times as pairs of name and value."""
    found = {k: units.si(v, "B") if k.endswith("_bytes") else str(v) for k, v in computer.items()}
    found |= {k: str(v) for k, v in versions.items()}
    found |= {"seeds": seeds, "started": started}
    found |= {name: units.seconds(v) for name, v in times.items()}
    return [(name.removesuffix("_bytes").replace("_", " "), value) for name, value in found.items() if value]


def _seeds(seeds: Mapping[str, int]) -> str:
    """One seed where all stages share it, else each with its stage."""
    values = {str(v) for v in seeds.values()}
    return values.pop() if len(values) == 1 else ", ".join(f"{k} {v}" for k, v in seeds.items())
