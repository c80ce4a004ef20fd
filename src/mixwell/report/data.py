"""The data of a run: what each domain holds, and the shares planned and drawn in training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixwell.core import units
from mixwell.report.records import RunRecord, numbers


def _bytes(value: Any) -> str:
    return units.si(value, "B")


def _two_decimals(value: Any) -> str:
    return units.fixed(value, 2)


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {  # field of a domain -> heading, form
    "documents": ("documents", units.whole), "found_bytes": ("there", _bytes), "train_bytes": ("to train on", _bytes),
    "held_bytes": ("held out", _bytes), "held_share": ("share held out", units.percent),
    "train_tokens": ("tokens to train on", units.si), "bytes_per_token": ("bytes per token", _two_decimals)}
RATIOS = ("held_share", "bytes_per_token")  # columns without a sum

Domains = dict[str, dict[str, Any]]  # domain -> what the stages said of it


def data(run: RunRecord) -> dict[str, Any]:
    """A table of the domains and one of the tokens drawn; empty where no stage tells of domains."""
    domains = _domains(run)
    if not domains:
        return {}
    names = [name for name in COLUMNS if _column(domains, name)]
    rows = [_row(domain, entry, names) for domain, entry in domains.items()]
    if len(domains) > 1:
        sums = [_sum(domains, name) for name in names]
        rows.append(["all", *sums])
    splits = [f"{domain} {entry['split']}" for domain, entry in domains.items() if entry.get("split")]
    return {
        "head": [COLUMNS[name][0] for name in names],
        "rows": rows if names else [],
        "splits": splits,
        "notices": _notices(run),
        "drawn": _drawn(run, domains)}


def _notices(run: RunRecord) -> list[str]:
    """What the stages have to say of the text and of how it was read; a training's sentences begin with its name."""
    notices = []
    for stage in run.stages:
        prefix = "" if stage.id == "data" else f"{stage.id}: "
        for text in stage.result.get("notices") or ():
            notices.append(prefix + text)
    return notices


def _domains(run: RunRecord) -> Domains:
    """Every domain that a stage names, with all that the stages say of it."""
    found: Domains = defaultdict(dict)
    for stage in run.stages:
        result = stage.result
        for domain, entry in (result.get("domains") or {}).items():
            found[domain].update(entry)
        for domain, value in (result.get("bytes_per_token") or {}).items():
            found[domain]["bytes_per_token"] = value
        for domain in result.get("ledger") or {}:
            found.setdefault(domain, {})  # nothing else may be known of it
    return found


def _column(domains: Domains, name: str) -> dict[str, float]:
    """Domain -> its number in a column; domains without one are left out."""
    column = {}
    for domain, entry in domains.items():
        value = entry.get(name)
        if units.is_number(value):
            column[domain] = value
    return column


def _row(domain: str, entry: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    row = [domain]
    for name in names:
        _, form = COLUMNS[name]
        row.append(form(entry.get(name)))
    return row


def _sum(domains: Domains, name: str) -> str:
    """The total of a column; a ratio has none."""
    if name in RATIOS:
        return ""
    _, form = COLUMNS[name]
    column = _column(domains, name)
    return form(sum(column.values()))


def _drawn(run: RunRecord, domains: Domains) -> dict[str, Any]:
    """Share and number of tokens by domain and training stage, beside the plan: the weights given, else the tokens."""
    sizes = {domain: float(count) for domain, count in _column(domains, "train_tokens").items()}
    head: list[str] = []
    by_size = []
    rows: list[list[Any]] = [[domain] for domain in domains]
    for stage in run.stages:
        ledger = numbers(stage.result.get("ledger"))
        if not stage.result.get("ledger"):
            continue
        head.append(stage.id)
        weights = numbers(stage.result.get("weights") or stage.config.get("weights"))
        if sizes and not weights:
            by_size.append(stage.id)
        for row in rows:
            row.append(_share(row[0], ledger, weights or sizes))
    return {"head": head, "rows": rows if head else [], "by_size": by_size}


def _share(domain: str, ledger: Mapping[str, float], plan: Mapping[str, float]) -> tuple[str, str]:
    """(share drawn, plan and tokens)"""
    drawn = ledger.get(domain, 0.0)
    share = _percent(drawn, sum(ledger.values()))
    tokens = f"{units.si(drawn)} tokens"
    planned = sum(plan.values())
    if not planned:
        return share, tokens
    return share, f"planned {_percent(plan.get(domain, 0.0), planned)} · {tokens}"


def _percent(part: float, whole: float) -> str:
    return units.percent(part / whole) if whole else units.ABSENT
