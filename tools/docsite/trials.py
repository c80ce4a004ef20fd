"""The evidence of a method on its page: what was claimed, what came out, the numbers, and how it was tried."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from docsite import maths
from docsite.evidence import OUTCOMES, Claim
from mixwell import claims as claim_files
from mixwell.core import units


def section(claims: Mapping[str, Claim]) -> str:
    """All claims of a method; says so where there is none."""
    if not claims:
        return "No claim of this method has been tried yet."
    return "\n\n".join(_one(name, claim) for name, claim in claims.items())


def verdict(claims: Sequence[Claim]) -> str:
    """`12 claims: 8 held, 3 did not hold.`"""
    if not claims:
        return "No claim was tried."
    counts = Counter(claim["outcome"] for claim in claims)
    parts = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
    return f"{len(claims)} claim{'' if len(claims) == 1 else 's'}: {parts}."


def _one(name: str, claim: Claim) -> str:
    outcome = claim["outcome"]
    head = (f'<p><span class="outcome {outcome.replace(" ", "-")}">{outcome}</span> '
            f"<strong>{maths.prose(claim['claim'])}</strong></p>")
    note = f"<p>{maths.prose(claim['note'])}</p>" if claim.get("note") else ""
    return (f'<div class="claim">{head}{_facts(claim)}{note}{_values(claim.get("values"))}{_design(name)}'
            f"<p>Try it: <code>mixwell claims {name}</code></p></div>")


def _facts(claim: Claim) -> str:
    """What was measured, as far as the entry tells."""
    where = claim.get("machine") or {}
    threads = where.get("threads")
    machine = ", ".join(part for part in (where.get("cpu"), f"threads {threads}" if threads else None) if part)
    facts = {"metric": claim.get("metric"), "effect": effect(claim), "interval": _interval(claim.get("interval")),
             "margin": _number(claim.get("margin", claim.get("at_least"))), "seeds": str(claim.get("seeds") or ""),
             "time": units.seconds(claim["seconds"]) if units.is_number(claim.get("seconds")) else "",
             "machine": machine, "date": claim.get("date")}
    told = {name: maths.prose(value) for name, value in facts.items() if value}
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in told.items())
    return f"<dl>{items}</dl>" if items else ""


def effect(claim: Claim) -> str:
    """`+0.031 ± 0.004`: method minus baseline, positive where it favours the method."""
    value = claim.get("effect")
    if not units.is_number(value):
        return ""
    spread = claim.get("spread")
    sign = "+" if value > 0 else ""
    return f"{sign}{units.number(value)}" + (f" ± {units.number(spread, 2)}" if units.is_number(spread) else "")


def _interval(found: Any) -> str:
    if not (isinstance(found, Sequence) and len(found) == 2 and all(map(units.is_number, found))):
        return ""
    return f"{units.number(found[0])} to {units.number(found[1])}"


def _number(value: Any) -> str:
    return units.number(value) if units.is_number(value) else ""


def _values(values: Any) -> str:
    """A row for each measured side, a column for each seed."""
    if not isinstance(values, Mapping) or not values:
        return ""
    sides = {name: row if isinstance(row, Sequence) and not isinstance(row, str) else [row]
             for name, row in values.items()}
    width = max(map(len, sides.values()))
    head = "<th></th>" + "".join(f"<th>seed {seed + 1}</th>" for seed in range(width))
    rows = "".join(f"<tr><td>{html.escape(name.replace('_', ' '))}</td>"
                   + "".join(f"<td>{_number(value)}</td>" for value in row) + "</tr>" for name, row in sides.items())
    return (f'<div class="scroll"><table class="values"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
            "</div>")


def _design(name: str) -> str:
    """How the claim is tried and what would count against it, from the claim file's docstring."""
    path = claim_files.ROOT.joinpath(*name.split(".")).with_suffix(".py")
    if not path.exists():
        return ""
    found = re.match(r'"""(.*?)"""', path.read_text(encoding="utf-8"), re.DOTALL)
    paragraphs = found[1].strip().split("\n\n")[1:] if found else []
    return "".join(f"<p>{maths.prose(part)}</p>" for part in paragraphs)
