"""Tensor names of the decoders of `families` to and from canonical ones, fusing and splitting on the way.

Legend: E experts, R rows of one part.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.formats.declared import Declared, Form, Fresh, check_form, copied, form_of
from mixwell.lm.hf.families import EXPERT_TENSORS, FAMILIES, Experts

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_WHOLE = {"embed.weight": EMBEDDING, "norm.weight": "model.norm.weight", "head.weight": HEAD}
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


Names = tuple[tuple[str, ...], ...]  # one tuple an expert (or one in all); its parts stand below each other


class Recipe(NamedTuple):
    """How one canonical tensor is made of tensors in a file."""

    names: Names
    rows: tuple[int, ...]  # rows of each part
    shape: tuple[int, ...]  # of the canonical tensor
    stacked: bool  # whether the experts are a leading dimension

    def part_shape(self, part: int) -> tuple[int, ...]:
        """Shape of a part in the file."""
        behind_rows = self.shape[2:] if self.stacked else self.shape[1:]
        return (self.rows[part], *behind_rows)

    def declared(self, part: int) -> Declared:
        """What a part in the file must be."""
        return Declared(self.part_shape(part))


def recipes(arch: Mapping[str, Any], model_type: str, shapes: Mapping[str, tuple[int, ...]],
            present: Collection[str] = (), fused: bool = False) -> dict[str, Recipe]:
    """A recipe for each canonical name in `shapes`; among the layouts of experts, the one whose names are `present`."""
    found = {}
    for name, shape in shapes.items():
        layouts = _layouts(name, model_type, shape, fused)
        there = [layout for layout in layouts if layout[0][0] in present]
        names = (there or layouts)[0]
        first = names[0][0]
        stacked = ".experts." in first and first.endswith(".weight")
        total = shape[1] if stacked else shape[0]
        rows = _rows(arch, total, len(names[0]))
        found[name] = Recipe(names, rows, shape, stacked)
    return found


def _layouts(name: str, model_type: str, shape: tuple[int, ...], fused: bool) -> list[Names]:
    """Names in the file that may make up canonical `name`, the preferred ones first."""
    if name in _WHOLE:
        return [_one(_WHOLE[name])]
    _, layer, rest = name.split(".", 2)
    prefix = f"model.layers.{layer}."
    experts = FAMILIES[model_type].experts
    if experts is not None and rest == "channel_mixer.router.weight":
        blocks = dict.fromkeys((experts.block, "mlp"))
        return [_one(f"{prefix}{block}.gate.weight") for block in blocks]
    if experts is not None and len(shape) == 3:
        return _expert_layouts(prefix, experts, rest.endswith("gate_up_proj"), shape[0], fused)
    if rest not in _LAYER:
        raise MixwellError(f"{name} has no place in a {model_type} model.")
    parts = tuple(prefix + part for part in _LAYER[rest])
    return [(parts,)]


def _expert_layouts(prefix: str, experts: Experts, gate_up: bool, count: int, fused: bool) -> list[Names]:
    """One tensor an expert and part, or one for all."""
    parts = experts.parts[:2] if gate_up else experts.parts[2:]
    apart = []
    for expert in range(count):
        stem = f"{prefix}{experts.block}.experts.{expert}"
        apart.append(tuple(f"{stem}.{part}.weight" for part in parts))
    whole = EXPERT_TENSORS[0] if gate_up else EXPERT_TENSORS[1]
    blocks = dict.fromkeys(("mlp", experts.block))
    joined = [_one(f"{prefix}{block}.{whole}") for block in blocks]
    if fused:
        return [*joined, tuple(apart)]
    return [tuple(apart), *joined]


def _one(name: str) -> Names:
    """A canonical tensor that is one in the file."""
    return ((name,),)


def _rows(arch: Mapping[str, Any], total: int, parts: int) -> tuple[int, ...]:
    """Rows of each part: of one or two equal ones, or of queries, keys and values."""
    if parts < 3:
        return (total // parts,) * parts
    heads = arch["num_heads"]
    kv_heads = arch.get("num_kv_heads") or heads
    width = total // (heads + 2 * kv_heads)
    queries, keys = heads * width, kv_heads * width
    return (queries, keys, keys)


class Gathered(Fresh):
    """Canonical tensors, each put together from a file's when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], table: Mapping[str, Recipe], where: str) -> None:
        self._tensors, self._table, self._where = tensors, table, where
        self._forms: dict[str, Form] = {}  # of 128 experts each of whose parts asks for it

    def __getitem__(self, name: str) -> Tensor:
        recipe = self._table[name]
        whole = torch.empty(recipe.shape, dtype=self.form(name).dtype)
        experts = whole if recipe.stacked else whole.unsqueeze(0)
        for names, room in zip(recipe.names, experts):
            self._fill(recipe, names, room)
        return whole

    def _fill(self, recipe: Recipe, names: tuple[str, ...], room: Tensor) -> None:
        """Copy the parts below each other, each once it is what config.json asks for."""
        places = room.split(recipe.rows)
        for part, (name, place) in enumerate(zip(names, places)):
            copied(self._tensors, name, recipe.declared(part), self._where, into=place)

    def form(self, name: str) -> Form:
        """Type and shape of a canonical tensor; parts of several types meet in the widest."""
        if name not in self._forms:
            self._forms[name] = self._form(self._table[name])
        return self._forms[name]

    def _form(self, recipe: Recipe) -> Form:
        found = {form_of(self._tensors, part).dtype for names in recipe.names for part in names}
        widest = functools.reduce(torch.promote_types, found)  # type: ignore[arg-type]  # `check_names` saw them
        return Form(widest, recipe.shape)

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
            for number, names in enumerate(recipe.names):
                expert = number if recipe.stacked else None
                start = 0
                for name, rows in zip(names, recipe.rows):
                    end = start + rows
                    self._places[name] = canonical, expert, slice(start, end)
                    start = end
        self._last_name, self._last = "", torch.empty(0)  # one canonical tensor serves many names in a row

    def __getitem__(self, name: str) -> Tensor:
        canonical, expert, rows = self._places[name]
        if canonical != self._last_name:
            self._last_name, self._last = canonical, self._tensors[canonical]
        tensor = self._last
        if expert is not None:
            tensor = tensor[expert]
        return tensor[rows]

    def form(self, name: str) -> Form:
        """Type and shape of a tensor of the file."""
        canonical, expert, rows = self._places[name]
        whole = form_of(self._tensors, canonical)
        behind_rows = whole.shape[1:] if expert is None else whole.shape[2:]
        return Form(whole.dtype, (rows.stop - rows.start, *behind_rows))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def check_names(table: Mapping[str, Recipe], tensors: Mapping[str, Tensor], where: str, tied: bool) -> None:
    """Refuse a file that lacks a tensor, holds one that would not be used, or one of another type or shape."""
    stored = set(tensors)
    wanted = _declared(table)
    for name in sorted(set(wanted) - stored):
        raise MixwellError(f"{where}: {name} is missing.")
    for name in sorted(stored - set(wanted)):
        if name.endswith("rotary_emb.inv_freq"):  # older files hold this constant; config.json says the same
            continue
        if tied and name == HEAD and _same(tensors, HEAD, EMBEDDING):
            continue
        raise MixwellError(f"{where}: {name} has no place in this model; it would be dropped. Is config.json its own?")
    for name, declared in wanted.items():
        check_form(name, form_of(tensors, name), declared, where)


def _declared(table: Mapping[str, Recipe]) -> dict[str, Declared]:
    """What the tensors of the file must be, by their names there."""
    found: dict[str, Declared] = {}
    for recipe in table.values():
        kinds = [recipe.declared(part) for part in range(len(recipe.rows))]
        for names in recipe.names:
            found.update(zip(names, kinds))
    return found


def _same(tensors: Mapping[str, Tensor], first: str, second: str) -> bool:
    same_form = form_of(tensors, first) == form_of(tensors, second)
    return same_form and torch.equal(tensors[first], tensors[second])
