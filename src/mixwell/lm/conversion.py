"""Running a conversion: what it asks for is handed in, and every tensor is accounted for before anything is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mixwell.convert.calibration import Calibration, asked
from mixwell.convert.placing import placing
from mixwell.core.checkpoint import Checkpoint, held
from mixwell.core.errors import MixwellError
from mixwell.core.registry import Entry
from mixwell.formats.declared import finite
from mixwell.lm.spilled import Spill, unread

EXPERTS = ("gate_up_proj", "down_proj")
_EMPTY = {torch.empty, torch.empty_like, torch.empty_strided, Tensor.new_empty, Tensor.new_empty_strided}


def convert(entry: Entry, before: Checkpoint, config: Any, generator: torch.Generator,
            calibration: Calibration | None = None, spill: Spill | None = None) -> Checkpoint:
    """Apply a method to a checkpoint.

    spill: where new tensors wait; with one, the source is read and the result kept a tensor at a time, and the result
    lasts as long as the spill does.

    A method that asks for calibration text and gets none, that leaves a tensor of its source unaccounted for, or a
    value or an expert unfilled, raises `MixwellError`.
    """
    module = entry.module()
    needs = asked(module, config)
    method = entry.load()
    if (needs.tokens or needs.models) and calibration is None:
        raise MixwellError(f"{entry.name} looks at text with these options; hand some in (text=..., or --text FILE).")
    before = held(before) if spill is None else unread(before)
    keep = None if spill is None else spill.kept
    with _empty_is_nan(), placing(keep):
        given = (calibration,) if hasattr(module, "needs") else ()
        after = method(before, config, generator, *given)
    check_accounted(before, after, entry.name)
    check_filled(before, after, entry.name)
    return after


def account_of(before: Checkpoint, after: Checkpoint) -> dict[str, Any]:
    """What became of the source's tensors: names used and copied, names dropped with the rule, names made."""
    own = _own_account(before, after)
    used = set(own.get("used", ()))
    dropped = dict(own.get("dropped", {}))
    moved = {*used, *dropped}
    copied = [name for name in before.tensors if name not in moved and name in after.tensors]
    made = [name for name in after.tensors if name not in copied]
    account: dict[str, Any] = {"copied": len(copied), "used": len(used), "made": len(made), "dropped": dropped}
    if "calibration" in own:
        account["calibration"] = own["calibration"]
    return account


def _own_account(before: Checkpoint, after: Checkpoint) -> Mapping[str, Any]:
    """What the conversion itself says became of the source's tensors; empty where it says nothing."""
    new = after.lineage[len(before.lineage) :]
    return new[-1].get("account", {}) if new else {}


def check_accounted(before: Checkpoint, after: Checkpoint, name: str) -> None:
    """Raise `MixwellError` for a tensor of the source that was neither used, nor copied, nor dropped by a rule."""
    own = _own_account(before, after)
    used = own.get("used", ())
    dropped = own.get("dropped", {})
    known = {*used, *dropped, *after.tensors}
    lost = [tensor for tensor in before.tensors if tensor not in known]
    if lost:
        raise MixwellError(f"{name} lost {lost[0]} and {len(lost) - 1} more tensors without a rule; nothing was kept.")


def check_filled(before: Checkpoint, after: Checkpoint, name: str) -> None:
    """Raise `MixwellError` for a new tensor with a value that is not finite, or an expert that is nothing but zeros."""
    for tensor, value in after.tensors.items():
        if value is before.tensors.get(tensor) or value.is_meta or not value.is_floating_point():
            continue
        if not finite(value):
            raise MixwellError(f"{name} left {tensor} with values that are not finite{_expert(tensor, value)}; nothing "
                               "was kept.")
        if tensor.endswith(EXPERTS) and value.ndim == 3:
            _check_experts(tensor, value, name)


def _expert(tensor: str, value: Tensor) -> str:
    """Which expert it is that has them, in words."""
    if not tensor.endswith(EXPERTS) or value.ndim != 3:
        return ""
    whole_E = value.isfinite().flatten(1).all(1)
    first = int(whole_E.int().argmin())
    return f", in expert {first}"


def _check_experts(tensor: str, value_E: Tensor, name: str) -> None:
    some_E = value_E.ne(0).flatten(1).any(1)
    if not bool(some_E.all()):
        empty = int(some_E.int().argmin())
        raise MixwellError(f"{name} left expert {empty} of {tensor} at zero; nothing was kept.")


class _NaN(TorchFunctionMode):
    """Memory that nobody wrote reads as NaN, which is no finite value."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None,
                           ) -> Any:
        made = function(*args, **(kwargs or {}))
        if function in _EMPTY and made.is_floating_point():
            made.fill_(float("nan"))
        return made


@contextmanager
def _empty_is_nan() -> Iterator[None]:
    with _NaN():
        yield
