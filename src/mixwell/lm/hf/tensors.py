"""Tensor names of the decoders of `families` to and from canonical ones, fusing and splitting on the way.

Legend: E experts, R rows of one part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.lm.hf.families import EXPERT_TENSORS, FAMILIES

_WHOLE = {
    "embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head.weight": "lm_head.weight",
}
_LAYER = {  # canonical name in a layer -> the parts that stand below each other in it
    "sequence_norm.weight": ("input_layernorm.weight",),
    "channel_norm.weight": ("post_attention_layernorm.weight",),
    "sequence_mixer.qkv.weight": tuple(f"self_attn.{x}_proj.weight" for x in "qkv"),
    "sequence_mixer.qkv.bias": tuple(f"self_attn.{x}_proj.bias" for x in "qkv"),
    "sequence_mixer.out.weight": ("self_attn.o_proj.weight",),
    "sequence_mixer.out.bias": ("self_attn.o_proj.bias",),
    "sequence_mixer.q_norm.weight": ("self_attn.q_norm.weight",),
    "sequence_mixer.k_norm.weight": ("self_attn.k_norm.weight",),
    "channel_mixer.gate_up_proj": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "channel_mixer.down_proj": ("mlp.down_proj.weight",),
}


class Recipe(NamedTuple):
    """How one canonical tensor is made of tensors in a file."""

    names: tuple[tuple[str, ...], ...]  # one tuple an expert (or one in all); its parts stand below each other
    rows: tuple[int, ...]  # rows of each part
    shape: tuple[int, ...]  # of the canonical tensor
    stacked: bool  # whether the experts are a leading dimension

    def part_shape(self, part: int) -> tuple[int, ...]:
        """Shape of a part in the file."""
        return (self.rows[part], *self.shape[2 if self.stacked else 1 :])


def recipes(arch: Mapping[str, Any], model_type: str, shapes: Mapping[str, tuple[int, ...]],
            present: Collection[str] = (), fused: bool = False) -> dict[str, Recipe]:
    """A recipe for each canonical name in `shapes`; among the layouts of experts, the one whose names are `present`."""
    found = {}
    for name, shape in shapes.items():
        options = _alternatives(name, model_type, shape, fused)
        names = next((o for o in options if o[0][0] in present), options[0])
        stacked = ".experts." in names[0][0] and names[0][0].endswith(".weight")
        found[name] = Recipe(names, _rows(arch, name, shape, len(names[0]), stacked), shape, stacked)
    return found


def _alternatives(name: str, model_type: str, shape: tuple[int, ...], fused: bool) -> list[tuple[tuple[str, ...], ...]]:
    """Names in the file that may make up canonical `name`, the preferred ones first."""
    if name in _WHOLE:
        return [((_WHOLE[name],),)]
    _, layer, rest = name.split(".", 2)
    prefix = f"model.layers.{layer}."
    experts = FAMILIES[model_type].experts
    if experts is not None and rest == "channel_mixer.router.weight":
        return [((f"{prefix}{block}.gate.weight",),) for block in dict.fromkeys((experts.block, "mlp"))]
    if experts is not None and len(shape) == 3:
        gate, up, down = experts.parts
        parts = (gate, up) if rest.endswith("gate_up_proj") else (down,)
        whole = EXPERT_TENSORS[0] if rest.endswith("gate_up_proj") else EXPERT_TENSORS[1]
        stem = f"{prefix}{experts.block}.experts"
        apart = [tuple(tuple(f"{stem}.{e}.{part}.weight" for part in parts) for e in range(shape[0]))]
        joined = [((f"{prefix}{block}.{whole}",),) for block in dict.fromkeys(("mlp", experts.block))]
        return [*joined, *apart] if fused else [*apart, *joined]
    if rest not in _LAYER:
        raise MixwellError(f"{name} has no place in a {model_type} model.")
    return [(tuple(prefix + part for part in _LAYER[rest]),)]


def _rows(arch: Mapping[str, Any], name: str, shape: tuple[int, ...], parts: int, stacked: bool) -> tuple[int, ...]:
    total = shape[1] if stacked else shape[0]
    if parts == 1:
        return (total,)
    if parts == 2:
        return (total // 2, total // 2)
    heads, kv_heads = arch["num_heads"], arch.get("num_kv_heads") or arch["num_heads"]
    width = total // (heads + 2 * kv_heads)
    return (heads * width, kv_heads * width, kv_heads * width)


class Gathered(Mapping[str, Tensor]):
    """Canonical tensors, each put together from a file's when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], table: Mapping[str, Recipe], where: str) -> None:
        self._tensors, self._table, self._where = tensors, table, where

    def __getitem__(self, name: str) -> Tensor:
        recipe = self._table[name]
        experts = [self._joined(recipe, names) for names in recipe.names]
        return torch.stack(experts) if recipe.stacked else experts[0]

    def _joined(self, recipe: Recipe, names: tuple[str, ...]) -> Tensor:
        parts = [self._tensors[name] for name in names]
        for i, (name, part) in enumerate(zip(names, parts)):
            if tuple(part.shape) != recipe.part_shape(i):
                raise MixwellError(f"{self._where}: {name} has shape {list(part.shape)}; config.json asks for "
                                   f"{list(recipe.part_shape(i))}.")
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


class Scattered(Mapping[str, Tensor]):
    """A file's tensors, each cut out of a canonical one when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], table: Mapping[str, Recipe]) -> None:
        self._tensors = tensors
        self._places: dict[str, tuple[str, int | None, slice]] = {}
        for canonical, recipe in table.items():
            for expert, names in enumerate(recipe.names):
                start = 0
                for name, rows in zip(names, recipe.rows):
                    self._places[name] = canonical, expert if recipe.stacked else None, slice(start, start + rows)
                    start += rows
        self._last: tuple[str, Tensor] | None = None  # one canonical tensor serves many names in a row

    def __getitem__(self, name: str) -> Tensor:
        canonical, expert, rows = self._places[name]
        if self._last is None or self._last[0] != canonical:
            self._last = canonical, self._tensors[canonical]
        tensor = self._last[1]
        return (tensor if expert is None else tensor[expert])[rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def check_names(table: Mapping[str, Recipe], tensors: Mapping[str, Tensor], where: str, tied: bool) -> None:
    """Refuse a file that lacks a tensor or holds one that would not be used."""
    wanted = {name for recipe in table.values() for names in recipe.names for name in names}
    for name in sorted(wanted - set(tensors)):
        raise MixwellError(f"{where}: {name} is missing.")
    for name in sorted(set(tensors) - wanted):
        if name.endswith("rotary_emb.inv_freq"):  # older files hold this constant; config.json says the same
            continue
        if tied and name == _WHOLE["head.weight"] and torch.equal(tensors[name], tensors[_WHOLE["embed.weight"]]):
            continue
        raise MixwellError(f"{where}: {name} has no place in this model; it would be dropped. Is config.json its own?")
