"""The report of a run: one HTML file that needs nothing outside itself.

`build` reads a run folder (`run_folder`), has every section computed from what the stages wrote (`views`), and renders
`templates/report.html`. What a run does not have (a mixture of experts, receipts, a second branch, samples) is left out
of the page. All text passes through Jinja2's autoescape; only the fragments of `plots` are taken as HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from mixwell.core import files, units
from mixwell.report import plots
from mixwell.report.data import data
from mixwell.report.experts import expert_load
from mixwell.report.headline import headline
from mixwell.report.receipts import receipts
from mixwell.report.run_folder import Run, Stage, is_model, mapping, read_run
from mixwell.report.training import loss, quality

TITLES = {"loss": "Loss", "quality": "Bits per byte", "experts": "Expert load", "data": "Data",
          "receipts": "Receipts and sizes", "stages": "Stages", "lineage": "Lineage", "samples": "Samples",
          "recipe": "Recipe", "machine": "Machine and versions"}


def build(run: Path, out: Path) -> Path:
    """Write the report of the run folder `run` to the file `out` (or `report.html` in it, where it is a folder).

    Returns the file written. A folder without a readable `run.json` raises `MixwellError`.
    """
    path = Path(out) / "report.html" if Path(out).is_dir() else Path(out)
    return files.write_text(path, render("report.html", **contents(read_run(run))))


def render(template: str, **context: Any) -> str:
    """Render a template of this folder; autoescape is on, an undefined name is an error."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mixwell.report", "templates"), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**context)


def contents(run: Run) -> dict[str, Any]:
    """Everything the template shows: plain text, tables as rows of text, charts as `Markup`; empty where absent."""
    colors = plots.slots([s.id for s in run.stages if s.trains or s.evaluation])
    sections: dict[str, Any] = {
        "loss": loss(run, colors), "quality": quality(run, colors), "experts": expert_load(run), "data": data(run),
        "receipts": receipts(run), "stages": stages(run), "lineage": lineage(run, colors), "samples": samples(run),
        "recipe": recipe(run), "machine": machine(run)}
    return {"title": run.name, "facts": facts(run), "headline": headline(run), "unfinished": run.unfinished,
            "toc": [(name, TITLES[name]) for name, part in sections.items() if part],
            "command": str(run.record.get("command") or ""), **sections}


def facts(run: Run) -> str:
    """One line under the title: when, how long, on what."""
    computer = mapping(run.record.get("machine"))
    threads = computer.get("threads") or computer.get("cores")
    time = run.record.get("seconds")
    parts = [str(run.record.get("started") or "")[:16].replace("T", " "),
             f"{units.seconds(time)} in all" if units.is_number(time) else "", str(computer.get("cpu") or ""),
             f"{threads} thread{'' if threads == 1 else 's'}" if threads else ""]
    return " · ".join(part for part in parts if part)


def stages(run: Run) -> list[list[Any]]:
    """Every stage with tokens, FLOPs, memory, time and time of its evaluation, each as (actual, predicted)."""
    forms = {"tokens": units.si, "flops": lambda v: units.si(v, "FLOP"), "peak_bytes": lambda v: units.si(v, "B"),
             "seconds": units.seconds}
    rows = []
    for s in run.stages:
        pairs = [tuple(form(v) if units.is_number(v := side.get(name)) else "" for side in (s.actual, s.predicted))
                 for name, form in forms.items()]
        weighed = (s.evaluation.get("seconds"), mapping(s.evaluation.get("predicted")).get("seconds"))
        times = tuple(units.seconds(v) if units.is_number(v) else "" for v in weighed)
        rows.append([s.id, s.method or s.kind, *pairs, times])
    return rows


def lineage(run: Run, colors: Mapping[str, int]) -> Markup:
    """From data to final models, each branch in its own lane."""
    nodes = []
    for stage in run.stages:
        parent = run.parent(stage)
        others = [s.id for s in run.inputs(stage) if parent is None or s.id != parent.id]
        detail = [stage.method or stage.kind, f"with {', '.join(others)}" if others else "",
                  _parameters(stage) if is_model(stage) else "",
                  f"{units.si(run.total(stage, 'tokens'))} tokens" if stage.trains else "",
                  f"key {stage.key[:8]}" if stage.key else ""]
        nodes.append(plots.Node(name=stage.id, title=stage.id, detail=" · ".join(d for d in detail if d),
                                parent=parent.id if parent else "", slot=colors.get(stage.id, plots.NUM_SLOTS)))
    return plots.lanes(nodes) if nodes else Markup("")


def _parameters(stage: Stage) -> str:
    every, active = stage.result.get("parameters"), stage.result.get("active_parameters")
    if not units.is_number(every):
        return ""
    part = f" ({units.si(active)} active)" if units.is_number(active) and active != every else ""
    return f"{units.si(every)} parameters{part}"


def samples(run: Run) -> list[dict[str, Any]]:
    """Sampled texts by stage, the prompt apart from what the model wrote."""
    groups = []
    for stage in run.stages:
        listed = [mapping(entry) for entry in stage.result.get("samples") or []]
        parent = run.parent(stage)
        if texts := [(str(e.get("prompt") or ""), str(e.get("text") or "")) for e in listed]:
            groups.append({"name": stage.id, "model": parent.id if parent else "", "texts": texts})
    return groups


def recipe(run: Run) -> str:
    """The recipe as YAML (or as the text it was written in)."""
    found = run.record.get("recipe")
    if not found or isinstance(found, str):
        return found or ""
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=100)


def machine(run: Run) -> list[tuple[str, str]]:
    """Machine, versions, seeds and times as pairs of name and value."""
    record = run.record
    found = {k: units.si(v, "B") if k.endswith("_bytes") else str(v) for k, v in mapping(record.get("machine")).items()}
    found |= {k: str(v) for k, v in mapping(record.get("versions")).items()}
    found |= {"seeds": _seeds(record.get("seeds", record.get("seed"))), "started": str(record.get("started") or "")}
    times = {"time in all stages": record.get("seconds"), "wall time of the last call": record.get("wall_seconds")}
    found |= {name: units.seconds(v) for name, v in times.items() if units.is_number(v)}
    return [(name.removesuffix("_bytes").replace("_", " "), value) for name, value in found.items() if value]


def _seeds(seeds: Any) -> str:
    """One seed where all stages share it, else each with its stage."""
    if isinstance(seeds, Mapping):
        values = {str(v) for v in seeds.values()}
        return values.pop() if len(values) == 1 else ", ".join(f"{k} {v}" for k, v in seeds.items())
    if isinstance(seeds, (list, tuple)):
        return ", ".join(map(str, seeds))
    return "" if seeds is None else str(seeds)
