"""The evidence of a method on its page: what was claimed, what came out, the numbers, and how it was tried."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from docsite import maths
from docsite.evidence import Claim, stale
from mixwell import claims as claim_files
from mixwell.claims import pages as tables
from mixwell.core import units


def shown(name: str, claim: Claim) -> dict[str, Any]:
    """A claim as its template asks for it; of one that is to be run, the figures that were there before."""
    known = claim.get("before", claim)
    rows = _rows(known.get("values"))
    width = max(map(len, rows.values()), default=0)
    seeds = known.get("tried", range(width))
    return {"name": name, "outcome": claim["outcome"], "stale": bool(stale({name: claim})),
            "words": maths.prose(claim["claim"]), "facts": facts(known),
            "note": maths.prose(claim.get("note") or ""), "rows": rows, "seeds": [f"seed {seed}" for seed in seeds],
            "conditions": _conditions(claim), "tuned": _tuned(claim.get("tuning") or {}),
            "design": [maths.prose(part) for part in _design(name)]}


def _conditions(claim: Claim) -> list[str]:
    """`error: held, +1.2 % (−0.5 to 3.0 %), margin −5.0 %`."""
    return [f"{one['condition']}: {one['outcome']}, {tables.gain(one)}, margin {tables.margin(one)}"
            for one in claim.get("conditions", ())]


def _tuned(tuning: Mapping[str, Any]) -> dict[str, str]:
    """Side -> the setting that was chosen, and of how many."""
    return {side: f"{_setting(told['chosen'])}; {len(told['tries'])} tried" for side, told in tuning.items()}


def _setting(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in chosen.items())


def _plain(value: Any) -> str:
    """A value of a setting; of a nested one, its entries."""
    if isinstance(value, Mapping):
        return f"({_setting(value)})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def verdict(claims: Sequence[Claim]) -> str:
    """`12 claims: 8 held, 3 undecided.`"""
    if not claims:
        return "No claim was tried."
    return tables.tally(claim["outcome"] for claim in claims)


FACTS: dict[str, Callable[[Claim], str]] = {
    "metric": lambda claim: claim.get("metric") or "",
    "gain": lambda claim: tables.gain(claim) or effect(claim),
    "margin": tables.margin,
    "seeds": lambda claim: str(claim.get("seeds") or ""),
    "time": lambda claim: _seconds(claim.get("seconds")),
    "machine": lambda claim: _machine(claim.get("machine") or {}),
    "date": lambda claim: claim.get("date") or "",
}


def facts(claim: Claim) -> dict[str, Any]:
    """What was measured, as far as the entry tells."""
    told = {name: read(claim) for name, read in FACTS.items()}
    return {name: maths.prose(value) for name, value in told.items() if value}


def effect(claim: Claim) -> str:
    """`+0.031 ± 0.004`, as it was given under the rule before this one."""
    value, spread = claim.get("effect"), claim.get("spread")
    if not units.is_number(value):
        return ""
    signed = units.number(value) if value <= 0 else f"+{units.number(value)}"
    return f"{signed} ± {units.number(spread, 2)}" if units.is_number(spread) else signed


def _number(value: Any) -> str:
    return units.number(value) if units.is_number(value) else ""


def _seconds(value: Any) -> str:
    return units.seconds(value) if units.is_number(value) else ""


def _machine(where: Mapping[str, Any]) -> str:
    threads = where.get("threads")
    told = [where.get("cpu"), f"threads {threads}" if threads else None]
    return ", ".join(part for part in told if part)


def _rows(values: Any) -> dict[str, list[str]]:
    """What was measured on each side, seed by seed."""
    if not isinstance(values, Mapping):
        return {}
    listed = {name: row if isinstance(row, list) else [row] for name, row in values.items()}
    return {name.replace("_", " "): [_number(value) for value in row] for name, row in listed.items()}


def _design(name: str) -> list[str]:
    """How the claim is tried and what would count against it: its file's docstring but for the first paragraph."""
    path = claim_files.ROOT.joinpath(*name.split(".")).with_suffix(".py")
    if not path.exists():
        return []
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[1:]
