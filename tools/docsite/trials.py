"""The evidence of a method on its page: what was claimed, what came out, the numbers, and how it was tried."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from docsite import maths
from docsite.evidence import OUTCOMES, Claim
from mixwell import claims as claim_files
from mixwell.core import units


def shown(name: str, claim: Claim) -> dict[str, Any]:
    """A claim as its template asks for it."""
    rows = _rows(claim.get("values"))
    width = max(map(len, rows.values()), default=0)
    note = claim.get("note") or ""
    return {"name": name, "outcome": claim["outcome"], "words": maths.prose(claim["claim"]), "facts": facts(claim),
            "note": maths.prose(note), "rows": rows, "seeds": [f"seed {seed}" for seed in range(1, width + 1)],
            "design": [maths.prose(part) for part in _design(name)]}


def verdict(claims: Sequence[Claim]) -> str:
    """`12 claims: 8 held, 3 did not hold.`"""
    if not claims:
        return "No claim was tried."
    counts = Counter(claim["outcome"] for claim in claims)
    told = [f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome]]
    noun = "claim" if len(claims) == 1 else "claims"
    return f"{len(claims)} {noun}: {', '.join(told)}."


FACTS: dict[str, Callable[[Claim], str]] = {
    "metric": lambda claim: claim.get("metric") or "",
    "effect": lambda claim: effect(claim),
    "interval": lambda claim: _interval(claim.get("interval")),
    "margin": lambda claim: _number(claim.get("margin", claim.get("at_least"))),
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
    """`+0.031 ± 0.004`: method minus baseline, positive where it favours the method."""
    value, spread = claim.get("effect"), claim.get("spread")
    if not units.is_number(value):
        return ""
    signed = units.number(value) if value <= 0 else f"+{units.number(value)}"
    return f"{signed} ± {units.number(spread, 2)}" if units.is_number(spread) else signed


def _interval(found: Any) -> str:
    if not isinstance(found, Sequence) or len(found) != 2:
        return ""
    low, high = map(_number, found)
    return f"{low} to {high}" if low and high else ""


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
