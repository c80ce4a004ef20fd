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
    """Every conversion's receipt, and one chart of the sizes that they state; empty where none was taken."""
    taken = [stage for stage in run.stages if stage.receipt]
    if not taken:
        return {}
    size: dict[str, float] = {}
    for stage in taken:
        parent = run.parent(stage)
        source = parent.id if parent else "before"
        for name, key in ((source, "size_before_bytes"), (stage.id, "size_after_bytes")):
            value = stage.receipt.get(key)
            if units.is_number(value):
                size[name] = value
    chart = plots.bar_chart(list(size), {"size": list(size.values())}, form=_bytes)
    return {"taken": [receipt(stage) for stage in taken], "chart": chart}


def receipt(stage: StageRecord) -> dict[str, Any]:
    """One conversion: its rows, whether all promises were kept, and what became of the function."""
    found = stage.receipt
    limits = _limits(found)
    states = {_state(found, name) for name in limits}
    count = len(limits)
    return {
        "name": stage.id,
        "method": stage.method or str(found.get("method") or ""),
        "rows": _rows(found),
        "promises": f"{count} promise{'' if count == 1 else 's'}",
        "state": next((state for state in ("broken", "kept") if state in states), ""),
        "sentence": _preserved(found)}


def _rows(found: Mapping[str, Any]) -> list[Row]:
    """What changed in the function, what was measured before and after, then any further promise."""
    limits = _limits(found)
    rows = [_single(found, name, label) for name, label in CHANGES.items() if name in found or name in limits]
    pairs = [
        _pair(found, "loss, nats per token", "loss_{}_nats", _four_decimals, _difference),
        _bits(found),
        _pair(found, "parameters", "parameters_{}", units.si, _ratio),
        _pair(found, "active parameters", "active_{}", units.si, _ratio),
        _pair(found, "size", "size_{}_bytes", _bytes, _ratio),
        _bits_per_weight(found)]
    rows += [row for row in pairs if row]
    shown = {*CHANGES, "loss_after_nats", "parameters_after", "size_after_bytes"}
    for name in limits:
        if name not in shown:
            rows.append(_single(found, name, name.replace("_", " ")))
    return rows


def _bytes(value: Any) -> str:
    return units.si(value, "B")


def _four_decimals(value: Any) -> str:
    return units.fixed(value, 4)


def _limits(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return found.get("promises") or {}


def _state(found: Mapping[str, Any], name: str) -> str:
    """`kept` or `broken` (a value that is not a number keeps no promise), or nothing where nothing was promised."""
    if name not in _limits(found):
        return ""
    value = found.get(name)
    limit = _limits(found)[name]
    if not (units.is_number(value) and units.is_number(limit)):
        return "broken"
    return "kept" if value <= limit else "broken"


def _single(found: Mapping[str, Any], name: str, label: str) -> Row:
    value = found.get(name)
    shown = units.number(value) if units.is_number(value) else "not a number"
    limits = _limits(found)
    limit = units.number(limits[name]) if name in limits else ""
    return [label, "", "", shown, limit, _state(found, name)]


def _pair(found: Mapping[str, Any], label: str, field: str, form: Callable[[Any], str],
          change: Callable[[float, float], str]) -> Row:
    """A quantity that was measured before and after; empty where it was not."""
    name = field.format("after")
    before = found.get(field.format("before"))
    after = found.get(name)
    moved = units.ABSENT
    if units.is_number(before) and units.is_number(after):
        moved = change(before, after)
    elif not units.is_number(before) and not units.is_number(after):
        return []
    limit = _limits(found).get(name)
    promised = form(limit) if units.is_number(limit) else ""
    return [label, form(before), form(after), moved, promised, _state(found, name)]


def _difference(before: float, after: float) -> str:
    text = f"{after - before:+.4f}".replace("-", "−")
    rounds_to_zero = not text.strip("+−0.")
    return "0.0000" if rounds_to_zero else text


def _ratio(before: float, after: float) -> str:
    if not before:
        return units.ABSENT
    factor = units.number(after / before)
    return f"×{units.THIN}{factor}"


def _bits(found: Mapping[str, Any]) -> Row:
    """The change in bits per byte with its interval; empty where it was not measured."""
    names = ("bits_per_byte_change", "bits_per_byte_low", "bits_per_byte_high")
    values = [found.get(name) for name in names]
    if not all(map(units.is_number, values)):
        return []
    change, low, high = (units.fixed(value, 4) for value in values)
    return ["bits per byte", "", "", f"{change} ({low} to {high})", "", ""]


def _bits_per_weight(found: Mapping[str, Any]) -> Row:
    bits = []
    for side in ("before", "after"):
        size = found.get(f"size_{side}_bytes")
        count = found.get(f"parameters_{side}")
        if not (units.is_number(size) and units.is_number(count) and count > 0):
            return []
        bits.append(8 * size / count)
    before, after = bits
    return ["bits per weight", units.number(before), units.number(after), _ratio(before, after), "", ""]


def _preserved(found: Mapping[str, Any]) -> str:
    """Whether the function was preserved, in a sentence; empty where nobody measured."""
    error = found.get("max_logit_error")
    if not units.is_number(error):
        return ""
    change = f"the largest change of a logit is {units.number(error)}"
    limit = _limits(found).get("max_logit_error")
    if not units.is_number(limit):
        return f"This conversion does not promise to preserve the function; {change}."
    kept = "was preserved at step 0" if error <= limit else "was NOT preserved at step 0"
    return f"The function {kept}: {change}, promised at most {units.number(limit)}."
