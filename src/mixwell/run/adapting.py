"""Adapters in folders, outside a recipe: merged into their base, taken out again, and written in another layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mixwell.adapters import files
from mixwell.adapters.attached import Attached
from mixwell.adapters.many import Many
from mixwell.core import disk, machine, registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError, shown
from mixwell.lm import adapted, peft, receipt
from mixwell.lm.model import LanguageModel
from mixwell.run.paths import find_adapter

ROOM = "adapters"
Layout = Literal["own", "peft", "unsloth", "stacks", "apart"]
# options of `peft.write` by layout: fused experts as PEFT has them, as Unsloth had them, as vLLM's stacks; one by one
WRITTEN: Mapping[str, dict[str, Any]] = {
    "peft": {"packing": "peft"}, "unsloth": {"packing": "expert_first"}, "stacks": {"packing": "stacks"},
    "apart": {"experts": "apart"}}
LOST = 1e-5  # of the largest logit: how far a converted adapter may be from the one that came


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is done with an adapter's folder."""

    packing: str | None = None  # of a PEFT file's fused experts: peft, expert_first (Unsloth before 2026-09-17), stacks
    layout: str | None = None  # write the adapter anew instead of merging it: own, peft, unsloth, stacks, apart
    unmerge: bool = False  # take it out of a model that it was merged into
    other_base: bool = False  # let it stand beside other weights than its file names by digest

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in get_args(Layout):
            raise ValueError(f"layout is {shown(self.layout)}; expected {', '.join(get_args(Layout))}")
        if self.packing is not None:
            peft.experts.check_packing(self.packing)
        if self.layout and self.unmerge:
            raise ValueError("layout and unmerge are two things; give one")


@dataclass(frozen=True, kw_only=True)
class Work:
    """A base, an adapter's folder, and what the two are weighed on."""

    base: Checkpoint
    name: str  # of the base, for readers
    folder: Path  # of the adapter
    tokens_BT: Tensor
    bytes_V: Tensor | None  # bytes of each token, where the tokens are text
    options: Options

    def put(self, **more: Any) -> Attached:
        """The adapter beside a model of the base's."""
        model = LanguageModel.from_checkpoint(self.base, "fp32")
        text = None if self.bytes_V is None else self.tokens
        packing = self.options.packing
        return adapted.put(self.folder, model.eval(), packing=packing, text=text, **more)

    def tokens(self) -> Tensor:
        """What the two are weighed on."""
        return self.tokens_BT

    def record(self, method: str, there: Attached, **facts: Any) -> dict[str, Any]:
        """A line of lineage."""
        inputs = [self.name, str(self.folder)]
        options = dict(vars(self.options))
        own = there.tensors()
        facts |= {"adapter_digest": files.digest(own), "versions": machine.versions()}
        count = self.tokens_BT.numel()
        return {"id": method, "stage": ROOM, "method": method, "config": options, "inputs": inputs, "tokens": count,
                **facts}


def options_of(given: Mapping[str, Any], method: str) -> Options:
    """The options, checked; an unknown one raises `MixwellError`."""
    return from_dict(Options, given, method)


def _check_method(there: Attached, method: str, folder: Path) -> None:
    own = there.method
    if own != method:
        raise MixwellError(f"{folder} holds {own}, not {method}; say `apply {own}`.")


def merge(method: str, work: Work) -> Checkpoint:
    """The base with the adapter in its weights, weighed; its last record of lineage holds the receipt.

    An adapter that no matrix can hold, a quantised base, and logits that differ from those with the adapter beside the
    base raise `MixwellError`.
    """
    registry.find(method)
    there = work.put(other_base=work.options.other_base)
    _check_method(there, method, work.folder)
    sizes = adapted.sizes_of_changes(there)
    trained = there.num_parameters
    own = work.record(method, there)
    bits = _bits(work, there)
    done = adapted.merge(there, work.base, work.tokens_BT)
    weighed = receipt.measure(work.base, done.checkpoint, work.tokens_BT, method, token_bytes_V=work.bytes_V)
    told = weighed.to_dict() | {"trained_parameters": trained, "merge_error": done.error, "changes": sizes,
                                "without_change": adapted.without_change(sizes)}
    told |= bits
    kept = replace(done.checkpoint, lineage=work.base.lineage, files=work.base.files)
    return kept.derive(record=own | {"receipt": told})


@torch.no_grad()
def _bits(work: Work, there: Attached) -> dict[str, float]:
    """Bits per byte of the base alone and with the adapter beside it; nothing where the tokens stand for no text."""
    if work.bytes_V is None:
        return {}
    bare = LanguageModel.from_checkpoint(work.base, "fp32").eval()  # as the one with the adapter computes
    sides = {"bits_per_byte_without": bare, "bits_per_byte_with": there.model}
    return {name: bits_per_byte(model, work.tokens_BT, work.bytes_V) for name, model in sides.items()}


def bits_per_byte(model: Any, tokens_BT: Tensor, bytes_V: Tensor) -> float:
    """What the model needs for the tokens behind the first of each window."""
    targets_BT = tokens_BT[:, 1:]
    nats_BT = model.token_nats(tokens_BT[:, :-1], targets_BT)
    bits = nats_BT.double().sum() / math.log(2)
    size = bytes_V[targets_BT].sum()
    return float(bits / size)


def unmerge(method: str, work: Work) -> Checkpoint:
    """The base of a merged model, up to rounding; refused where it cannot be had back so."""
    there = work.put(other_base=True)
    _check_method(there, method, work.folder)
    digest = files.digest(there.tensors())
    merged = [record.get("adapter_digest") for record in work.base.lineage]
    if digest not in merged:
        raise MixwellError(f"{work.name} does not say that {work.folder} was merged into it, so taking that out would "
                           "give no base; name the merged model.")
    own = work.record(method, there)
    before = adapted.taken_out(there, work.base)
    weighed = receipt.measure(work.base, before, work.tokens_BT, method, token_bytes_V=work.bytes_V)
    kept = replace(before, lineage=work.base.lineage, files=work.base.files)
    return kept.derive(record=own | {"receipt": weighed.to_dict()})


@torch.no_grad()
def convert(method: str, work: Work, out: Path) -> dict[str, Any]:
    """Write the adapter in another layout, read it again, and tell how far its logits are from those that came.

    What the layout cannot hold without loss raises `MixwellError`, and nothing is left.
    """
    there = work.put(other_base=work.options.other_base)
    _check_method(there, method, work.folder)
    expected_BTV = there.model(work.tokens_BT).logits_BTV
    layout = work.options.layout
    if layout == "own":
        files.save(there, out, work.name)
    else:
        peft.write(there, out, base=work.name, **WRITTEN[str(layout)])
    again = adapted.put(out, LanguageModel.from_checkpoint(work.base, "fp32").eval())
    found_BTV = again.model(work.tokens_BT).logits_BTV
    away_BTV = found_BTV - expected_BTV
    error = float(away_BTV.abs().max())
    largest = float(expected_BTV.abs().max())
    if not error <= LOST * max(largest, 1.0):
        disk.remove(out)
        raise MixwellError(f"{layout}: read again, a logit is {error:.3g} away from the adapter that came; nothing was "
                           "kept.")
    return {"layout": layout, "parameters_before": there.num_parameters, "parameters_after": again.num_parameters,
            "max_logit_error": error}


def named(words: Sequence[str]) -> dict[str, str]:
    """Name -> place of adapters given as `NAME=PLACE`, or as a place whose last part is the name.

    A name that comes twice raises `MixwellError`.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, place = word.partition("=")
        if not equals:
            name, place = Path(word.rstrip("/")).name, word
        if name in found or not name:
            raise MixwellError(f"--adapter {shown(word)}: two adapters would be {shown(name)}; write NAME=FOLDER.")
        found[name] = place
    return found


def put_many(model: LanguageModel, places: Mapping[str, str]) -> Many | None:
    """The adapters in some folders beside one model, for rows to choose from; None where there are none."""
    if not places:
        return None
    held = {}
    counted: list[str] = []

    def base_digest(there: Attached) -> str:
        if not counted:
            counted.append(files.base_digest(there))
        return counted[0]

    for name, place in places.items():
        there = adapted.put(find_adapter(place), model, base_digest=base_digest)
        there.detach()
        held[name] = there
    return Many(model, held)
