"""Receipts of conversions: what was promised, what was measured, and what the weights take on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mixwell.core import units
from mixwell.report import plots
from mixwell.report.records import RunRecord, StageRecord

Row = list[str]  # quantity, before, after, change, limit, kept or broken

CHANGES = {"max_logit_error": "largest change of a logit", "kl_nats": "KL(before ‖ after), nats per token"}


def receipts(run: RunRecord) -> dict[str, Any]:
    """Every conversion's receipt, and one chart of the sizes that they tell of; empty where none was taken."""
    taken = [s for s in run.stages if s.receipt]
    size: dict[str, float] = {}
    for stage in taken:
        parent = run.parent(stage)
        for name, key in ((parent.id if parent else "before", "size_before_bytes"), (stage.id, "size_after_bytes")):
            if units.is_number(stage.receipt.get(key)):
                size[name] = stage.receipt[key]
    chart = plots.bar_chart(list(size), {"size": list(size.values())}, form=lambda v: units.si(v, "B"))
    return {"taken": [receipt(s) for s in taken], "chart": chart} if taken else {}


def receipt(stage: StageRecord) -> dict[str, Any]:
    """One conversion: its rows, whether all promises were kept, and what became of the function."""
    found, limits = stage.receipt, _limits(stage.receipt)
    pairs = [_pair(found, "loss, nats per token", "loss_{}_nats", lambda v: units.fixed(v, 4), _difference),
             _pair(found, "parameters", "parameters_{}", units.si, _ratio),
             _pair(found, "size", "size_{}_bytes", lambda v: units.si(v, "B"), _ratio), _bits_per_weight(found)]
    rows = [*(_single(found, name, label) for name, label in CHANGES.items() if name in found or name in limits),
            *(row for row in pairs if row)]
    shown = {*CHANGES, "loss_after_nats", "parameters_after", "size_after_bytes"}
    rows += [_single(found, name, name.replace("_", " ")) for name in limits if name not in shown]
    states = {_state(found, name) for name in limits}
    return {"name": stage.id, "method": stage.method or str(found.get("method") or ""), "rows": rows,
            "promises": f"{len(limits)} promise{'' if len(limits) == 1 else 's'}",
            "state": "broken" if "broken" in states else "kept" if states else "", "sentence": _preserved(found)}


def _limits(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return found.get("promises") or {}


def _state(found: Mapping[str, Any], name: str) -> str:
    """`kept` or `broken` (a value that is not a number keeps no promise), or nothing where nothing was promised."""
    if name not in _limits(found):
        return ""
    value, limit = found.get(name), _limits(found)[name]
    return "kept" if units.is_number(value) and units.is_number(limit) and value <= limit else "broken"


def _single(found: Mapping[str, Any], name: str, label: str) -> Row:
    value = units.number(found[name]) if units.is_number(found.get(name)) else "not a number"
    limit = units.number(_limits(found)[name]) if name in _limits(found) else ""
    return [label, "", "", value, limit, _state(found, name)]


def _pair(found: Mapping[str, Any], label: str, field: str, form: Callable[[Any], str],
          change: Callable[[float, float], str]) -> Row:
    """A quantity that was measured before and after; empty where it was not."""
    before, after = found.get(field.format("before")), found.get(field.format("after"))
    if not units.is_number(before) and not units.is_number(after):
        return []
    limit = _limits(found).get(field.format("after"))
    moved = change(before, after) if units.is_number(before) and units.is_number(after) else units.ABSENT
    return [label, form(before), form(after), moved, form(limit) if units.is_number(limit) else "",
            _state(found, field.format("after"))]


def _difference(before: float, after: float) -> str:
    text = f"{after - before:+.4f}".replace("-", "−")
    return text if text.strip("+−0.") else "0.0000"


def _ratio(before: float, after: float) -> str:
    return f"×{units.THIN}{units.number(after / before)}" if before else units.ABSENT


def _bits_per_weight(found: Mapping[str, Any]) -> Row:
    bits = []
    for side in ("before", "after"):
        size, count = found.get(f"size_{side}_bytes"), found.get(f"parameters_{side}")
        if not (units.is_number(size) and units.is_number(count) and count > 0):
            return []
        bits.append(8 * size / count)
    return ["bits per weight", *map(units.number, bits), _ratio(*bits), "", ""]


def _preserved(found: Mapping[str, Any]) -> str:
    error, limit = found.get("max_logit_error"), _limits(found).get("max_logit_error")
    if not units.is_number(error):
        return ""
    if not units.is_number(limit):
        return ("This conversion does not promise to preserve the function; the largest change of a logit is "
                f"{units.number(error)}.")
    kept = "was preserved at step 0" if error <= limit else "was NOT preserved at step 0"
    return (f"The function {kept}: the largest change of a logit is {units.number(error)}, promised at most "
            f"{units.number(limit)}.")
