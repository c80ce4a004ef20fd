"""Which order the experts of a file are in, told by the loss."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mixwell.lm.model import LanguageModel
from mixwell.lm.peft.experts import PACKINGS
from mixwell.lm.peft.reading import read


@torch.no_grad()
def weigh_packings(folder: str | Path, model: LanguageModel, tokens_BT: Tensor) -> dict[str, float]:
    """The loss in nats a token of `model` with the adapter in a folder, by each order of its experts.

    tokens_BT: text of the kind that the adapter was trained on. The lower loss is the order of the file; two that are
    close say that the text is not of that kind.
    """
    inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    found: dict[str, float] = {}
    for packing in PACKINGS:
        there = read(folder, model, packing=packing)
        try:
            loss = model.loss(inputs_BT, targets_BT)
        finally:
            there.detach()
        found[packing] = float(loss.nats)
    return found
