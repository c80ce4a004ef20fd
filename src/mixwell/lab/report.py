"""The report of a run: one HTML file that needs nothing outside itself.

`build` reads a run folder (`run_folder`), computes every figure from what the stages wrote, and renders
`templates/report.html`. What a run does not have (a mixture of experts, receipts, a second branch, samples) is left out
of the page. All text passes through Jinja2's autoescape; only the fragments of `plots` are taken as HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from mixwell.core import files
from mixwell.lab import plots, units
from mixwell.lab.experts_view import expert_load
from mixwell.lab.headline import headline
from mixwell.lab.run_folder import Run, Stage, is_model, read_run

Rows = list[list[Any]]
TITLES = {"loss": "Loss", "quality": "Bits per byte", "experts": "Expert load", "data": "Data",
          "receipts": "Receipts and sizes", "stages": "Stages", "lineage": "Lineage", "samples": "Samples",
          "recipe": "Recipe", "machine": "Machine and versions"}
CHANGES = {"max_logit_error": "largest change of a logit", "kl_nats": "KL(before ‖ after), nats per token"}
PAIRS = (("loss", "loss_before_nats", "loss_after_nats"), ("parameters", "parameters_before", "parameters_after"),
         ("size", "size_before_bytes", "size_after_bytes"))


def build(run: Path, out: Path) -> Path:
    """Write the report of the run folder `run` to the file `out` (or `report.html` in it, where it is a folder).

    Returns the file written. A folder without a readable `run.json` raises `MixwellError`.
    """
    found = read_run(run)
    path = Path(out) / "report.html" if Path(out).is_dir() else Path(out)
    return files.write_text(path, render("report.html", **contents(found)))


def render(template: str, **context: Any) -> str:
    """Render a template of this folder; autoescape is on, an undefined name is an error."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mixwell.lab", "templates"), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**context)


def contents(run: Run) -> dict[str, Any]:
    """Everything the template shows: plain text, tables as rows of text, charts as `Markup`; empty where absent."""
    colors = plots.slots([s.id for s in run.stages if is_model(s) and (s.metrics or s.evaluation)])
    sections: dict[str, Any] = {
        "loss": loss_charts(run, colors), "quality": quality(run, colors), "experts": expert_load(run),
        "data": data_table(run), "receipts": receipts(run, colors), "stages": stage_table(run),
        "lineage": lineage(run, colors), "samples": samples(run), "recipe": recipe_text(run),
        "machine": machine(run)}
    return {"title": run.name, "facts": facts(run), "headline": headline(run), "unfinished": run.unfinished,
            "toc": [(name, TITLES[name]) for name, part in sections.items() if part],
            "command": str(run.record.get("command") or "mixwell run recipe.yaml"),
            "recipe_is_printed": not run.record.get("command"), **sections}


def facts(run: Run) -> str:
    """One line under the title: when, how long, on what."""
    computer = _mapping(run.record.get("machine"))
    cores = computer.get("threads") or computer.get("cores")
    parts = [str(run.record.get("started") or "")[:16].replace("T", " "),
             f"{units.seconds(run.record['seconds'])} in all" if units.is_number(run.record.get("seconds")) else "",
             f"{computer.get('cpu') or ''}{f', {cores} threads' if cores else ''}".strip(", "),
             str(computer.get("gpu") or "")]
    return " · ".join(part for part in parts if part)


def loss_charts(run: Run, colors: Mapping[str, int]) -> list[tuple[str, Markup]]:
    """Smoothed loss of every training stage against tokens, FLOPs and seconds, each line beginning where its parent
    ended, so that branches part at the model they share."""
    charts = []
    for budget, label in (("tokens", "tokens"), ("flops", "training FLOP"), ("seconds", "seconds of training")):
        lines: list[plots.Series] = []
        for stage in (s for s in run.stages if s.trains):
            before = [total(s, budget) for s in run.ancestors(stage) if s.trains and s.id != stage.id]
            if any(b is None for b in before):
                continue
            x = [line.get(budget, float("nan")) + sum(b for b in before if b) for line in stage.metrics
                 if units.is_number(line.get("loss_nats"))]
            y = [line["loss_nats"] for line in stage.metrics if units.is_number(line.get("loss_nats"))]
            lines += [plots.Series(name=stage.id, x=x, y=y, slot=colors[stage.id], faint=True),
                      plots.Series(name=stage.id, x=x, y=plots.smooth(y, max(3, len(y) // 25)), slot=colors[stage.id])]
        ordered = sorted(lines, key=lambda line: not line.faint)
        chart = plots.line_chart(ordered, x_label=label, y_label="training loss, nats per token", y_range=_view(lines))
        charts += [(label, chart)] if chart else []
    return charts


def total(stage: Stage, budget: str) -> float | None:
    """What a training stage spent of `budget`: as it says itself, else as its last metric says."""
    spent = [stage.result.get(budget), *(line.get(budget) for line in reversed(stage.metrics[-1:]))]
    return next((float(v) for v in spent if v is not None and units.is_number(v)), None)


def _view(lines: Sequence[plots.Series]) -> tuple[float, float] | None:
    """From a little under the lowest loss to the highest after the first 15 % of the axis: the first fall is cut, so
    that the end, where the branches differ, has room."""
    points = [(x, y) for line in lines if not line.faint for x, y in zip(line.x, line.y)]
    if not points:
        return None
    start, end = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for x, y in points if x >= start + 0.15 * (end - start))
    return (low - 0.06 * (high - low), high + 0.06 * (high - low)) if high > low else None


def quality(run: Run, colors: Mapping[str, int]) -> dict[str, Any]:
    """Held-out bits per byte by stage and domain, the best of each column marked, and the change from the parent."""
    measured = {s.id: _numbers(s.evaluation.get("bits_per_byte")) for s in run.stages}
    measured = {name: row for name, row in measured.items() if row}
    if not measured:
        return {}
    domains = list(dict.fromkeys(d for row in measured.values() for d in row))
    mean = {name: _mean(run[name], row) for name, row in measured.items()}
    columns = [[row.get(d) for row in measured.values()] for d in domains] + [list(mean.values())]
    best = [min((v for v in column if v is not None), default=None) for column in columns]
    rows = []
    for i, name in enumerate(measured):
        cells = [{"text": units.fixed(column[i], 3), "best": column[i] is not None and column[i] == top and len(measured) > 1}
                 for column, top in zip(columns, best)]
        parent = _measured_parent(run, run[name], mean)
        change = f"{units.percent(mean[name] / mean[parent] - 1, 2, sign=True)} ({parent})" if parent else ""
        rows.append({"name": name, "cells": cells, "change": change})
    chart = plots.dot_chart(domains, {n: [row.get(d) for d in domains] for n, row in measured.items()},
                            label="bits per byte of held-out text, lower is better", colors=colors)
    return {"head": [*domains, "mean"], "rows": rows, "chart": chart, "changes": any(r["change"] for r in rows)}


def _measured_parent(run: Run, stage: Stage, mean: Mapping[str, float]) -> str:
    parent = run.parent(stage)
    while parent is not None and parent.id not in mean:
        parent = run.parent(parent)
    return parent.id if parent is not None else ""


def _mean(stage: Stage, row: Mapping[str, float]) -> float:
    stated = stage.evaluation.get("mean")
    return float(stated) if stated is not None and units.is_number(stated) else sum(row.values()) / len(row)


def data_table(run: Run) -> dict[str, Any]:
    """Domains with files, bytes and tokens, and for each training stage the share planned and the share drawn."""
    parts: dict[str, dict[str, Any]] = {}
    for stage in run.stages:
        for domain, entry in _mapping(stage.result.get("domains")).items():
            parts.setdefault(domain, {}).update(_mapping(entry))
        for domain, value in _mapping(stage.result.get("bytes_per_token")).items():
            parts.setdefault(domain, {})["bytes_per_token"] = value
    ledgers = {s.id: _numbers(s.result.get("ledger")) for s in run.stages if s.result.get("ledger")}
    for ledger in ledgers.values():
        for domain in ledger:
            parts.setdefault(domain, {})
    if not parts:
        return {}
    columns: list[tuple[str, list[str]]] = []
    for name, label, form in (("files", "files", units.whole), ("train_bytes", "to train on", lambda v: units.si(v, "B")),
                              ("held_bytes", "held out", lambda v: units.si(v, "B")),
                              ("train_tokens", "tokens", units.si),
                              ("bytes_per_token", "bytes per token", lambda v: units.fixed(v, 2))):
        values = [p.get(name) for p in parts.values()]
        if any(units.is_number(v) for v in values):
            summed = sum(v for v in values if v is not None) if name != "bytes_per_token" else None
            columns.append((label, [form(v) for v in [*values, *([summed] if len(parts) > 1 else [])]]))
    names = [*parts, *(["all"] if len(parts) > 1 else [])]
    return {"head": [label for label, _ in columns], "rows": [[n, *(c[i] for _, c in columns)] for i, n in enumerate(names)],
            "drawn": drawn(run, ledgers, parts)}


def drawn(run: Run, ledgers: Mapping[str, Mapping[str, float]], parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Shares and tokens drawn by domain and training stage, beside the plan: the weights given, else the tokens held."""
    held = {d: float(p["train_tokens"]) for d, p in parts.items() if units.is_number(p.get("train_tokens"))}
    plans = {name: _numbers(run[name].config.get("weights")) or held for name in ledgers}
    rows = [[domain, *(_drawn(domain, ledger, plans[name]) for name, ledger in ledgers.items())] for domain in parts]
    by_size = [name for name in ledgers if plans[name] is held and held]
    return {"head": list(ledgers), "rows": rows if ledgers else [], "by_size": by_size}


def _drawn(domain: str, ledger: Mapping[str, float], plan: Mapping[str, float]) -> tuple[str, str]:
    everything, planned = sum(ledger.values()), sum(plan.values())
    share = units.percent(ledger.get(domain, 0.0) / everything) if everything else units.ABSENT
    wanted = f"planned {units.percent(plan.get(domain, 0.0) / planned)} · " if planned else ""
    return share, f"{wanted}{units.si(ledger.get(domain, 0.0))} tokens"


def receipts(run: Run, colors: Mapping[str, int]) -> dict[str, Any]:
    """Every conversion's receipt, and one chart of the sizes on disk that they tell of."""
    taken = [s for s in run.stages if s.receipt]
    size: dict[str, float] = {}
    for stage in taken:
        parent = run.parent(stage)
        for name, key in ((parent.id if parent else "before", "size_before_bytes"), (stage.id, "size_after_bytes")):
            if units.is_number(stage.receipt.get(key)):
                size[name] = stage.receipt[key]
    chart = plots.bar_chart(list(size), {"size": list(size.values())}, form=lambda v: units.si(v, "B")) if size else ""
    return {"taken": [receipt(s) for s in taken], "chart": chart} if taken else {}


def receipt(stage: Stage) -> dict[str, Any]:
    """One conversion: (quantity, before, after, change, limit, kept or broken) by row, and what became of the function."""
    found, promises = stage.receipt, _mapping(stage.receipt.get("promises"))
    rows = [[label, "", "", units.number(found.get(name)), *_limit(name, found, promises)]
            for name, label in CHANGES.items() if name in found]
    rows += [row for pair in PAIRS if (row := _pair_row(found, promises, *pair))]
    if bits := _bits_per_weight(found):
        rows.append(bits)
    known = {*CHANGES, *(key for _, *keys in PAIRS for key in keys)}
    rows += [[name.replace("_", " "), "", "", units.number(found.get(name)), *_limit(name, found, promises)]
             for name in promises if name not in known]
    broken = [name for name, limit in promises.items() if not keeps(found.get(name), limit)]
    return {"name": stage.id, "method": stage.method or str(found.get("method") or ""), "rows": rows,
            "state": "broken" if broken else "kept" if promises else "", "sentence": _preserved(found, promises)}


def _pair_row(found: Mapping[str, Any], promises: Mapping[str, Any], label: str, first: str, second: str) -> list[str]:
    before, after = found.get(first), found.get(second)
    if not (units.is_number(before) or units.is_number(after)):
        return []
    form = {"loss": lambda v: units.fixed(v, 4), "size": lambda v: units.si(v, "B")}.get(label, units.si)
    change = units.ABSENT
    if before is not None and after is not None and units.is_number(before) and units.is_number(after):
        change = f"{after - before:+.4f}".replace("-", "−") if label == "loss" else f"× {units.number(after / before)}" if before else change
    name = "loss, nats per token" if label == "loss" else label
    limit, state = _limit(second, found, promises)
    return [name, form(before), form(after), change, form(promises[second]) if limit else "", state]


def _bits_per_weight(found: Mapping[str, Any]) -> list[str]:
    pairs = [(found.get(f"size_{side}_bytes"), found.get(f"parameters_{side}")) for side in ("before", "after")]
    if not all(units.is_number(size) and units.is_number(count) and count for size, count in pairs):
        return []
    before, after = (8 * float(size or 0) / float(count or 1) for size, count in pairs)
    return ["bits per weight", units.number(before), units.number(after), f"× {units.number(after / before)}", "", ""]


def _limit(name: str, found: Mapping[str, Any], promises: Mapping[str, Any]) -> tuple[str, str]:
    if name not in promises:
        return "", ""
    return units.number(promises[name]), "kept" if keeps(found.get(name), promises[name]) else "broken"


def keeps(value: Any, limit: Any) -> bool:
    """Whether a measured value keeps its promise; a value that is not a number keeps none."""
    return units.is_number(value) and units.is_number(limit) and value <= limit


def _preserved(found: Mapping[str, Any], promises: Mapping[str, Any]) -> str:
    error, limit = found.get("max_logit_error"), promises.get("max_logit_error")
    if not units.is_number(error):
        return ""
    if limit is None:
        return f"This conversion does not promise to preserve the function; the largest change of a logit is {units.number(error)}."
    kept = "was preserved at step 0" if keeps(error, limit) else "was NOT preserved"
    return f"The function {kept}: no logit changed by more than {units.number(error)}, promised {units.number(limit)}."


def stage_table(run: Run) -> Rows:
    """Every stage with tokens, FLOPs, memory, time and time of its evaluation, each as (actual, predicted)."""
    forms = {"tokens": units.si, "flops": lambda v: units.si(v, "FLOP"), "peak_bytes": lambda v: units.si(v, "B"),
             "seconds": units.seconds}
    rows = []
    for s in run.stages:
        pairs = [tuple(form(side[name]) if units.is_number(side.get(name)) else "" for side in (s.actual, s.predicted))
                 for name, form in forms.items()]
        weighed = (s.evaluation.get("seconds"), _mapping(s.evaluation.get("predicted")).get("seconds"))
        rows.append([s.id, s.method or s.kind, *pairs, tuple(units.seconds(v) if units.is_number(v) else "" for v in weighed)])
    return rows


def lineage(run: Run, colors: Mapping[str, int]) -> Markup:
    """From data to final models, each branch in its own lane."""
    nodes = []
    for stage in run.stages:
        parent = run.parent(stage)
        others = [s.id for s in run.inputs(stage) if parent is None or s.id != parent.id]
        parameters = stage.result.get("parameters")
        detail = [stage.method or stage.kind, f"with {', '.join(others)}" if others else "",
                  f"{units.si(parameters)} parameters" if units.is_number(parameters) else "",
                  f"{units.si(stage.result.get('tokens'))} tokens" if stage.trains else "",
                  f"key {stage.key[:8]}" if stage.key else ""]
        nodes.append(plots.Node(name=stage.id, title=stage.id, detail=" · ".join(d for d in detail if d),
                                parent=parent.id if parent else "", slot=colors.get(stage.id, plots.NUM_SLOTS)))
    return plots.lanes(nodes) if nodes else Markup("")


def samples(run: Run) -> list[dict[str, Any]]:
    """Sampled texts by stage; the prompt apart from what the model wrote."""
    groups = []
    for stage in run.stages:
        listed = [e for e in stage.result.get("samples") or [] if isinstance(e, Mapping)]
        parent = run.parent(stage)
        texts = [{"prompt": str(e.get("prompt") or ""),
                  "text": str(e.get("text") or "").removeprefix(str(e.get("prompt") or ""))} for e in listed]
        groups += [{"name": stage.id, "model": parent.id if parent else "", "texts": texts}] if texts else []
    return groups


def recipe_text(run: Run) -> str:
    """The recipe as YAML (or as the text it was written in)."""
    recipe = run.record.get("recipe")
    if not recipe:
        return ""
    return recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)


def machine(run: Run) -> list[tuple[str, str]]:
    """Machine, versions, seeds and times as pairs of name and value."""
    record = run.record
    pairs = [(k, units.si(v, "B") if k.endswith("_bytes") else str(v)) for k, v in _mapping(record.get("machine")).items()]
    pairs += [(k, str(v)) for k, v in _mapping(record.get("versions")).items()]
    pairs += [("seeds", _seeds(record.get("seeds", record.get("seed"))))]
    pairs += [("started", str(record.get("started") or ""))]
    pairs += [(label, units.seconds(record[name])) for name, label in (("seconds", "time in all stages"),
              ("wall_seconds", "wall time of the last call")) if units.is_number(record.get(name))]
    pairs = [(name, value) for name, value in pairs if value]
    return [(name.removesuffix("_bytes").replace("_", " "), value) for name, value in dict(pairs).items()]


def _seeds(seeds: Any) -> str:
    """One seed where all stages share it, else each with its stage."""
    if isinstance(seeds, Mapping):
        named = {str(k): str(v) for k, v in seeds.items()}
        return next(iter(named.values())) if len(set(named.values())) == 1 else ", ".join(f"{k} {v}" for k, v in named.items())
    if isinstance(seeds, (list, tuple)):
        return ", ".join(map(str, seeds))
    return "" if seeds is None else str(seeds)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _numbers(value: Any) -> dict[str, float]:
    return {str(k): float(v) for k, v in _mapping(value).items() if units.is_number(v)}
