"""PEFTDebias: an adapter learns from texts with their groups swapped, and stays, frozen, while the model is tuned.

**Equation:** upstream: an adapter beside the frozen model is trained on texts x and swap(x), swap exchanging the words
    of each pair; downstream: the adapter is frozen and the model W trained with it in place, norms left as they are.
**Shapes:** ids [B, T]; [B + S, T] with the S rows that hold one of the words.
**Reference:** Agarwal et al. 2023, PEFTDebias (2312.00434), and its released code.
**Differs:** any adapter and any loss of the model; there, masked words in BERT. Rows without such a word stand once.
    Training loops are the caller's. Where the change is a matrix, W + D with D frozen moves as the merged matrix does:
    then merging before the tuning, `adapt` then `train` in a recipe, is the same but for weight decay.
**Fails when:** the shortcut pays in the task's texts: the whole model is free to learn it again. An adapter taken off,
    or added behind the tuning, is another method.
**Cost:** the adapter's training on up to twice the text, once for all tasks of one axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.adapters.attached import Attached
from mixwell.adapters.selected import norms_of
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.kernels.packing import CHANGES


@dataclass(frozen=True, kw_only=True)
class Config:
    """The words of an axis."""

    pairs: tuple[tuple[int, int], ...]  # ids that take each other's place, no id twice
    both: bool = True  # the texts as they are stand beside those swapped

    def __post_init__(self) -> None:
        ids = [number for pair in self.pairs for number in pair]
        unlike = set(ids)
        if not ids or len(unlike) < len(ids) or min(ids) < 0:
            raise ValueError(f"pairs are {self.pairs}; expected one at least, ids of 0 and more, none of them twice")


def swapped(tokens_BT: Tensor, pairs: tuple[tuple[int, int], ...]) -> Tensor:
    """The ids of each pair in each other's place."""
    found = tokens_BT.clone()
    for first, second in pairs:
        found[tokens_BT == first] = second
        found[tokens_BT == second] = first
    return found


@method(title="PEFTDebias", paper="PEFTDebias : Capturing debiasing information using PEFTs", year=2023)
def debias(tokens_BT: Tensor, config: Config) -> Tensor:
    """What the adapter is trained on upstream: rows that hold one of the words, swapped, behind all rows as they are.

    Raises `MixwellError` where no row holds one.
    """
    changed_BT = swapped(tokens_BT, config.pairs)
    differs = changed_BT != tokens_BT
    concerned = differs.any(1)
    if not bool(concerned.any()):
        raise MixwellError("no row holds a word of the pairs, so there is nothing to swap; look at the ids.")
    other = changed_BT[concerned]
    return torch.cat((tokens_BT, other)) if config.both else other


def turn(attached: Attached, norms: bool = False) -> list[str]:
    """Downstream: freeze the adapter and free the model beside it; names of what is trained from now on.

    norms: train those of the model as well. Raises `MixwellError` for an adapter that is merged.
    """
    if attached.merged:
        raise MixwellError("the adapter is merged, and what is frozen must stand beside the model; unmerge it.")
    parameters = dict(attached.model.named_parameters())
    own = [name for name in parameters if CHANGES not in name.split(".")]
    still = [] if norms else norms_of(attached.model, own)
    free = [name for name in own if name not in still and parameters[name].is_floating_point()]
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in free)
    return free


def example(generator: torch.Generator) -> dict[str, Any]:
    """Four rows, of which three hold one of two words."""
    tokens_BT = torch.randint(2, 9, (4, 5), generator=generator)
    tokens_BT[:2, 1] = 0
    tokens_BT[2, 4] = 1
    return {"tokens_BT": tokens_BT, "config": Config(pairs=((0, 1),))}
