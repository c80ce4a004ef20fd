"""Adapters in folders, of mixwell's form or PEFT's, put beside a model, weighed, merged into it and taken out again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixwell.adapters import files
from mixwell.adapters.attached import Attached
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.formats.declared import form_of
from mixwell.lm import peft
from mixwell.lm.model import LanguageModel
from mixwell.lm.peft.places import CONFIG as PEFT

AGREE = 1e-3  # of the largest logit: how far a merged model may be from the base with the adapter beside it
Text = Callable[[], Tensor]  # gives tokens [B, T] of the kind that an adapter was trained on


def put(folder: str | Path, model: LanguageModel, *, packing: str | None = None, text: Text | None = None,
        other_base: bool = False, base_digest: Callable[[Attached], str] = files.base_digest) -> Attached:
    """Put the adapter in a folder of mixwell's or of PEFT's beside `model`.

    packing, text: of PEFT's fused experts, see `mixwell.lm.peft.settled_packing`. other_base: whether it may stand
    beside other numbers than the file says that it was trained beside. base_digest: may count the model's numbers
    once for many adapters. What does not fit raises `MixwellError`, and nothing is attached.
    """
    folder = Path(folder)
    if (folder / files.FILE).is_file():
        if packing is not None:
            raise MixwellError(f"{folder} says itself how its experts lie; leave packing out.")
        return files.load(folder, model, other_base=other_base, base_digest=base_digest)
    if (folder / PEFT).is_file():
        order = peft.settled_packing(folder, model, packing, text, other_base=other_base)
        return peft.read(folder, model, packing=order, other_base=other_base, base_digest=base_digest)
    raise MixwellError(f"{folder} holds no adapter; expected {files.FILE} (mixwell) or {PEFT} (PEFT).")


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A model with an adapter in its weights."""

    checkpoint: Checkpoint
    error: float  # largest difference of a logit to the base with the adapter beside it


@torch.no_grad()
def merge(there: Attached, before: Checkpoint, tokens_BT: Tensor) -> Merged:
    """The model with the adapter in its weights, in the types in which the base `before` is stored; both stay joined.

    The model of `there` computes in float32. Logits on `tokens_BT` that differ by more than its rounding from those
    with the adapter beside it raise `MixwellError`: then a change was lost or misplaced.
    """
    model: Any = there.model.eval()
    assert model.dtype == torch.float32
    apart_BTV = model(tokens_BT).logits_BTV
    there.merge()
    together_BTV = model(tokens_BT).logits_BTV
    away_BTV = apart_BTV - together_BTV
    error = float(away_BTV.abs().max())
    largest = float(apart_BTV.abs().max())
    allowed = AGREE * max(largest, 1.0)
    if not error <= allowed:
        raise MixwellError(f"{there.method}: merged, a logit is {error:.3g} away from that with the adapter beside the "
                           f"model, {allowed:.3g} at most were expected; the result was not kept.")
    return Merged(checkpoint=stored_as(model.to_checkpoint(), before), error=error)


def stored_as(after: Checkpoint, before: Checkpoint) -> Checkpoint:
    """The checkpoint with its tensors in the types of those that stand in the same places of another."""
    tensors = {}
    for name, value in after.tensors.items():
        dtype = form_of(before.tensors, name).dtype
        tensors[name] = value.to(dtype)
    return replace(after, tensors=tensors)


@torch.no_grad()
def sizes_of_changes(there: Attached) -> dict[str, list[float]]:
    """||change|| / ||W|| by target: of each expert of a stack, else of the one matrix."""
    found = {}
    for name, adapter in there.adapters.items():
        change = adapter.delta_weight()
        weight = adapter.target.numbers
        ratio = _length(change) / _length(weight).clamp_min(torch.finfo(torch.float32).tiny)
        found[name] = ratio.reshape(-1).tolist()
    return found


def _length(weight: Tensor) -> Tensor:
    """Frobenius norm of each matrix."""
    return weight.flatten(-2).norm(dim=-1)


def without_change(sizes: dict[str, list[float]]) -> dict[str, list[int]]:
    """Stacks of experts some of which the adapter leaves as they are, and which."""
    found = {}
    for name, ratios in sizes.items():
        idle = [expert for expert, ratio in enumerate(ratios) if not ratio]
        if idle and len(ratios) > 1:
            found[name] = idle
    return found


@torch.no_grad()
def taken_out(there: Attached, merged: Checkpoint) -> Checkpoint:
    """The base of a merged model beside which the adapter was put: W - change, up to rounding.

    Raises `MixwellError` where the base cannot be had back so: weights of 16 bits, which rounded the change; a change
    that is a function of W; parameters that were trained as they are.
    """
    model: Any = there.model
    if there.trained:
        raise MixwellError(f"{', '.join(there.trained)} came whole with the adapter, so what stood there is gone; take "
                           "the base itself.")
    changes = {}
    for name, adapter in there.adapters.items():
        dtype = form_of(merged.tensors, name).dtype
        if dtype != torch.float32:
            raise MixwellError(f"{name} is {str(dtype).removeprefix('torch.')}, whose rounding took digits of "
                               "the base with it; take the base itself.")
        changes[name] = adapter.delta_weight()
    if not any(bool(change.any()) for change in changes.values()):
        raise MixwellError(f"{there.method} holds the new numbers, not how far they are from the base's, so nothing "
                           "can be taken out; take the base itself.")
    for name, change in changes.items():
        adapter = there.adapters[name]
        adapter.target.tensor.sub_(change)
        again = adapter.delta_weight()
        if not torch.equal(again, change):
            raise MixwellError(f"{name}: the change of {there.method} is a function of the base's weight, so the "
                               "merged one does not tell it; take the base itself.")
    there.detach()
    found: Checkpoint = model.to_checkpoint()
    return found
