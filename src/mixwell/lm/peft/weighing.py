"""Which order the experts of a file are in: said, told by the loss, or asked for; shapes never tell it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.lm.model import LanguageModel
from mixwell.lm.peft.experts import FLAT
from mixwell.lm.peft.options import read_options
from mixwell.lm.peft.places import PACKING
from mixwell.lm.peft.reading import read

CLEAR_NATS = 0.005  # a token: by so much the right order is better than the other


@torch.no_grad()
def weigh_packings(folder: str | Path, model: LanguageModel, tokens_BT: Tensor, *,
                   other_base: bool = False) -> dict[str, float]:
    """The loss in nats a token of `model` with the adapter in a folder, by each order of its experts.

    tokens_BT: text of the kind that the adapter was trained on. The lower loss is the order of the file; two that are
    close say that the text is not of that kind. other_base: see `mixwell.lm.peft.read`.
    """
    found: dict[str, float] = {}
    for packing in FLAT:
        there = read(folder, model, packing=packing, other_base=other_base)
        try:
            found[packing] = _nats(model, tokens_BT)
        finally:
            there.detach()
    return found


def _nats(model: LanguageModel, tokens_BT: Tensor) -> float:
    loss = model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:])
    return float(loss.nats)


def settled_packing(folder: str | Path, model: LanguageModel, packing: str | None = None,
                    text: Callable[[], Tensor] | None = None, *, other_base: bool = False) -> str | None:
    """The order of the experts in a folder: the one named, else as the file says, else as the loss on `text` tells.

    text: gives tokens [B, T] of the kind that the adapter was trained on. other_base: see `mixwell.lm.peft.read`. A
    file whose order is not said, would matter, and cannot be told raises `MixwellError`: the wrong one gives fluent
    nonsense.
    """
    folder = Path(folder)
    said = packing or read_options(folder).get(PACKING)
    if said or _is_one_order(folder, model):
        return said
    if text is None:
        raise MixwellError(f"{folder} does not say in which order its experts lie, and both orders in use have the "
                           "same shapes. `mixwell apply adapters.lora --in BASE --adapter IT --out OWN layout=own` "
                           "writes it down, with packing=peft or packing=expert_first (Unsloth before 2026-09-17), or "
                           "with --text of the kind that it was trained on, and the loss tells.")
    return _told_by_loss(folder, model, text(), other_base)


def _is_one_order(folder: Path, model: LanguageModel) -> bool:
    """Whether the flat orders give the same adapter: none is read where the model has no stack that they differ in."""
    if all(value.ndim < 3 for value in model.state_dict().values()):
        return True
    first, second = (_tensors(folder, model, packing) for packing in FLAT)
    apart = [name for name in first if not torch.equal(first[name], second[name])]
    return not apart


def _tensors(folder: Path, model: LanguageModel, packing: str) -> dict[str, Tensor]:
    there = read(folder, model, packing=packing, other_base=True)  # the orders are compared, whatever the base
    found = there.tensors()
    there.detach()
    return found


@torch.no_grad()
def _told_by_loss(folder: Path, model: LanguageModel, tokens_BT: Tensor, other_base: bool) -> str:
    losses = weigh_packings(folder, model, tokens_BT, other_base=other_base)
    bare = _nats(model, tokens_BT)
    best, other = sorted(losses, key=losses.__getitem__)
    told = ", ".join(f"{name} {nats:.4f}" for name, nats in losses.items())
    if losses[other] - losses[best] < CLEAR_NATS or losses[best] > bare:
        raise MixwellError(f"{folder}: this text does not tell the order of its experts ({told}, the base {bare:.4f} "
                           "nats a token); give text of the kind that the adapter was trained on, or name packing=.")
    return best
