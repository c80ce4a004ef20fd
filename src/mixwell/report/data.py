"""The data of a run: what each domain holds, and the shares planned and drawn in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mixwell.core import units
from mixwell.report.records import RunRecord, numbers

COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {  # field of a domain -> heading, form
    "documents": ("documents", units.whole), "found_bytes": ("there", lambda v: units.si(v, "B")),
    "train_bytes": ("to train on", lambda v: units.si(v, "B")), "held_bytes": ("held out", lambda v: units.si(v, "B")),
    "held_share": ("share held out", units.percent), "train_tokens": ("tokens to train on", units.si),
    "bytes_per_token": ("bytes per token", lambda v: units.fixed(v, 2))}
RATIOS = ("held_share", "bytes_per_token")  # columns without a sum

Domains = dict[str, dict[str, Any]]  # domain -> what the stages said of it


def data(run: RunRecord) -> dict[str, Any]:
    """A table of the domains and one of the tokens drawn; empty where no stage tells of domains."""
    domains = _domains(run)
    if not domains:
        return {}
    names = [name for name in COLUMNS if any(units.is_number(d.get(name)) for d in domains.values())]
    rows = [[domain, *(COLUMNS[name][1](entry.get(name)) for name in names)] for domain, entry in domains.items()]
    if len(domains) > 1:
        rows.append(["all", *(_sum(domains, name) for name in names)])
    splits = [f"{domain} {entry['split']}" for domain, entry in domains.items() if entry.get("split")]
    return {"head": [COLUMNS[name][0] for name in names], "rows": rows if names else [], "splits": splits,
            "notices": _notices(run), "drawn": _drawn(run, domains)}


def _notices(run: RunRecord) -> list[str]:
    """What the stages have to say of the text and of how it was read; a training's sentences begin with its name."""
    told = [(stage, text) for stage in run.stages for text in stage.result.get("notices") or ()]
    return [text if stage.id == "data" else f"{stage.id}: {text}" for stage, text in told]


def _domains(run: RunRecord) -> Domains:
    """Every domain that a stage names, with all that the stages say of it."""
    found: Domains = {}
    for stage in run.stages:
        for domain, entry in (stage.result.get("domains") or {}).items():
            found.setdefault(domain, {}).update(entry)
        for domain, value in (stage.result.get("bytes_per_token") or {}).items():
            found.setdefault(domain, {})["bytes_per_token"] = value
        for domain in stage.result.get("ledger") or {}:
            found.setdefault(domain, {})
    return found


def _sum(domains: Domains, name: str) -> str:
    """The total of a column; a ratio has none."""
    if name in RATIOS:
        return ""
    return COLUMNS[name][1](sum(v for d in domains.values() if units.is_number(v := d.get(name))))


def _drawn(run: RunRecord, domains: Domains) -> dict[str, Any]:
    """Share and number of tokens by domain and training stage, beside the plan: the weights given, else the tokens."""
    held = {name: float(v) for name, d in domains.items() if units.is_number(v := d.get("train_tokens"))}
    ledgers = {s.id: numbers(s.result.get("ledger")) for s in run.stages if s.result.get("ledger")}
    weights = {name: numbers(run[name].config.get("weights")) for name in ledgers}
    rows = [[domain, *(_share(domain, ledger, weights[name] or held) for name, ledger in ledgers.items())]
            for domain in domains]
    return {"head": list(ledgers), "rows": rows if ledgers else [],
            "by_size": [name for name in ledgers if held and not weights[name]]}


def _share(domain: str, ledger: Mapping[str, float], plan: Mapping[str, float]) -> tuple[str, str]:
    """(share drawn, plan and tokens)"""
    everything, planned = sum(ledger.values()), sum(plan.values())
    tokens = f"{units.si(ledger.get(domain, 0.0))} tokens"
    share = units.percent(ledger.get(domain, 0.0) / everything) if everything else units.ABSENT
    return share, f"planned {units.percent(plan.get(domain, 0.0) / planned)} · {tokens}" if planned else tokens
