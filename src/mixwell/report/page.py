"""The report of a run: one HTML file that needs nothing outside itself.

`build` reads a run's records, has every section computed from what the stages wrote, and renders
`templates/report.html`. What a run does not have (a mixture of experts, receipts, a second branch, samples) is left out
of the page. All text passes through Jinja2's autoescape; only the fragments of `plots` are taken as HTML.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mixwell.core import files, units
from mixwell.report import plots
from mixwell.report.adapters import adapters
from mixwell.report.data import data
from mixwell.report.experts import expert_load
from mixwell.report.headline import headline
from mixwell.report.mixture import mixtures
from mixwell.report.receipts import receipts
from mixwell.report.records import RunRecord, StageRecord, figure, read_run, recipe_text
from mixwell.report.training import colors, loss, quality

TITLES = {"adapters": "Adapters", "loss": "Loss", "quality": "Bits per byte", "experts": "Expert load",
          "mixture": "Mixture", "data": "Data",
          "receipts": "Receipts and sizes", "stages": "Stages", "lineage": "Lineage", "samples": "Samples",
          "recipe": "Recipe", "machine": "Machine and versions"}
FORMS: Mapping[str, Callable[[Any], str]] = {  # figure of a stage -> its form
    "tokens": units.si, "flops": lambda v: units.si(v, "FLOP"), "peak_bytes": lambda v: units.si(v, "B"),
    "seconds": units.seconds}


def build(run: str | Path, out: str | Path) -> Path:
    """Write the report of the run folder `run` to the file `out` (or `report.html` in it, where it is a folder).

    Returns the file written. A folder without a whole run raises `MixwellError`.
    """
    path = Path(out)
    if path.is_dir():
        path = path / "report.html"
    page = render("report.html", **contents(read_run(run)))
    return files.write_text(path, page)


def render(template: str, **context: Any) -> str:
    """Render a template of this folder; autoescape is on, an undefined name raises `jinja2.UndefinedError`."""
    page = _environment().get_template(template)
    return page.render(**context)


@functools.cache
def _environment() -> jinja2.Environment:
    """It keeps the templates that it compiled, which takes longer than to fill one in."""
    loader = jinja2.PackageLoader("mixwell.report", "templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)


def contents(run: RunRecord) -> dict[str, Any]:
    """Everything the template shows: plain text, tables as rows of text, charts as `Markup`; empty where absent."""
    slot = colors(run)
    times = {"time in all stages": run.seconds, "wall time of the last call": run.wall_seconds}
    sections: dict[str, Any] = {
        "adapters": adapters(run),
        "loss": loss(run, slot),
        "quality": quality(run, slot),
        "experts": expert_load(run),
        "mixture": mixtures(run),
        "data": data(run),
        "receipts": receipts(run),
        "stages": stages(run),
        "lineage": lineage(run, slot),
        "samples": samples(run),
        "recipe": recipe_text(run.recipe),
        "machine": machine(run.machine, run.versions, _seeds(run.seeds), run.started, times)}
    return {
        "title": run.name,
        "facts": facts(run.machine, run.started, run.seconds, _dtypes(run)),
        "headline": headline(run),
        "toc": [(name, TITLES[name]) for name, part in sections.items() if part],
        **sections}


def facts(computer: Mapping[str, Any], started: str, seconds: float | None = None, more: str = "") -> str:
    """One line under the title: when, how long, on what."""
    parts = [started[:16].replace("T", " ")]
    if seconds is not None:
        parts.append(f"{units.seconds(seconds)} in all")
    for name in ("cpu", "instructions"):
        parts.append(str(computer.get(name) or ""))
    threads = computer.get("threads") or computer.get("cores")
    if threads:
        parts.append(f"{threads} thread{'' if threads == 1 else 's'}")
    parts.append(more)
    return _dotted(parts)


def _dotted(parts: Iterable[str]) -> str:
    """What there is, with dots between."""
    return " · ".join(part for part in parts if part)


def _dtypes(run: RunRecord) -> str:
    """`trained in bf16`"""
    found: dict[str, None] = {}
    for stage in run.stages:
        dtype = stage.result.get("dtype") or stage.config.get("dtype")
        if stage.trains and dtype:
            found[str(dtype)] = None
    return f"trained in {' and '.join(found)}" if found else ""


def stages(run: RunRecord) -> list[list[Any]]:
    """Every stage with tokens, FLOPs, memory, time and time of its evaluation, each as (actual, predicted)."""
    rows = []
    for stage in run.stages:
        row: list[Any] = [stage.id, stage.method or stage.kind]
        for name, form in FORMS.items():
            row.append(_pair(stage.actual, stage.predicted, name, form))
        evaluation = stage.evaluation
        row.append(_pair(evaluation, evaluation.get("predicted") or {}, "seconds", units.seconds))
        rows.append(row)
    return rows


def _pair(actual: Mapping[str, Any], predicted: Mapping[str, Any], name: str,
          form: Callable[[Any], str]) -> tuple[str, ...]:
    """What was measured and what was predicted, as text; empty where there is no number."""
    texts = []
    for record in (actual, predicted):
        value = record.get(name)
        texts.append(form(value) if units.is_number(value) else "")
    return tuple(texts)


def lineage(run: RunRecord, slot: Mapping[str, int]) -> Markup:
    """From data to final models, each branch in its own lane."""
    nodes = []
    for stage in run.stages:
        parent = run.parent(stage)
        source = parent.id if parent else ""
        others = [s.id for s in run.inputs(stage) if s.id != source]
        color = slot.get(stage.id, plots.NUM_SLOTS)
        node = plots.Node(name=stage.id, title=stage.id, detail=_detail(stage, others), parent=source, slot=color)
        nodes.append(node)
    return plots.lanes(nodes) if nodes else Markup("")


def _detail(stage: StageRecord, others: Sequence[str]) -> str:
    """What a stage did, with which inputs beside its parent, and how large it was."""
    parts = [stage.method or stage.kind]
    if others:
        parts.append(f"with {', '.join(others)}")
    if stage.makes_model:
        parts.append(_parameters(stage))
    if stage.trains:
        tokens = figure(stage.result, "tokens")
        parts.append(f"{units.si(tokens)} tokens")
    parts.append(f"key {stage.key[:8]}")
    return _dotted(parts)


def _parameters(stage: StageRecord) -> str:
    every = stage.result.get("parameters")
    active = stage.result.get("active_parameters")
    if not units.is_number(every):
        return ""
    words = f"{units.si(every)} parameters"
    if units.is_number(active) and active != every:
        words += f" ({units.si(active)} active)"
    return words


def samples(run: RunRecord) -> list[dict[str, Any]]:
    """Sampled texts by stage, the prompt apart from what the model wrote."""
    groups = []
    for stage in run.stages:
        texts = [(entry["prompt"], entry["text"]) for entry in stage.result.get("samples", [])]
        if texts:
            parent = run.parent(stage)
            groups.append({"name": stage.id, "model": parent.id if parent else "", "texts": texts})
    return groups


def machine(computer: Mapping[str, Any], versions: Mapping[str, str], seeds: str, started: str,
            times: Mapping[str, float]) -> list[tuple[str, str]]:
    """Machine, versions, seeds and times as pairs of name and value."""
    found = {}
    for name, value in computer.items():
        size = name.endswith("_bytes")
        found[name] = units.si(value, "B") if size else str(value)
    found |= {name: str(value) for name, value in versions.items()}
    found |= {"seeds": seeds, "started": started}
    found |= {name: units.seconds(value) for name, value in times.items()}
    return [(_heading(name), value) for name, value in found.items() if value]


def _heading(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")


def _seeds(seeds: Mapping[str, int]) -> str:
    """One seed where all stages share it, else each with its stage."""
    values = set(seeds.values())
    if len(values) == 1:
        return str(values.pop())
    return ", ".join(f"{stage} {seed}" for stage, seed in seeds.items())
