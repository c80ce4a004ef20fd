"""Where the modules of a Hugging Face decoder stand in the tensors of mixwell, which hold several of them at once.

Legend: E experts, O outputs, I inputs, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixwell.core.config import to_dict
from mixwell.core.errors import MixwellError
from mixwell.lm.folder import OWN, shapes
from mixwell.lm.hf.tensors import Recipe, recipes
from mixwell.lm.hf.writing import model_type_of
from mixwell.lm.model import LanguageModel

PREFIX = "base_model.model."  # before every name in PEFT's files
WEIGHT = ".weight"
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PACKING, BASE = "mixwell_expert_packing", "mixwell_base_digest"  # keys of our own in PEFT's config


@dataclass(frozen=True)
class Place:
    """Rows of a canonical tensor that are a tensor of their own in Hugging Face's model."""

    canonical: str
    rows: slice
    expert: int | None = None  # of a stack; None where it holds all of them
    order: tuple[int, ...] = ()  # Hugging Face's row of each canonical row, where they are not in order

    def within(self, value: Tensor) -> Tensor:
        """The expert's part of a value that a stack has for each; the value itself where the place is no expert's."""
        return value if self.expert is None else value[self.expert]

    def arranged(self, value: Tensor, dim: int) -> Tensor:
        """Rows in Hugging Face's order, as they stand in the canonical tensor."""
        return _taken(value, self.order, dim)

    def given_back(self, value: Tensor, dim: int) -> Tensor:
        """The other way."""
        places = range(len(self.order))
        back = sorted(places, key=self.order.__getitem__)
        return _taken(value, tuple(back), dim)


def _taken(value: Tensor, order: tuple[int, ...], dim: int) -> Tensor:
    if not order:
        return value
    rows = torch.tensor(order, device=value.device)
    return value.index_select(dim, rows)


def places_of(model: LanguageModel) -> dict[str, Place]:
    """Hugging Face's names of tensors, those of experts one by one and all at once, and what they are here.

    A model that no decoder of `transformers` computes raises `MixwellError`.
    """
    arch = to_dict(model.config)
    model_type = model_type_of(arch)
    if model_type == OWN:
        raise MixwellError("no decoder of transformers computes this model, so no PEFT adapter fits it; use "
                           "mixwell.adapters.files.")
    own = shapes(arch)
    apart = recipes(arch, model_type, own)
    fused = recipes(arch, model_type, own, fused=True)
    found: dict[str, Place] = {}
    for table in (apart, fused):
        for canonical, recipe in table.items():
            found |= _places(canonical, recipe)
    return found


def _places(canonical: str, recipe: Recipe) -> dict[str, Place]:
    found = {}
    for number, names in enumerate(recipe.names):
        expert = number if recipe.stacked else None
        start = 0
        for name, rows in zip(names, recipe.rows):
            end = start + rows
            whole = len(names) == 1 and not recipe.stacked
            inside = slice(None) if whole else slice(start, end)
            found[name] = Place(canonical, inside, expert, recipe.order)
            start = end
    return found


def module_of(name: str) -> str:
    """A tensor's module, or the tensor itself where it is a bare parameter."""
    return name.removesuffix(WEIGHT)
