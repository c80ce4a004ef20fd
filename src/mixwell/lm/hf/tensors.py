"""Tensor names of the decoders of `families` to and from canonical ones, fusing and splitting on the way.

Legend: E experts, R rows of one part.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.formats.declared import Declared, Form, Fresh, Lazy, check_form, copied, form_of
from mixwell.lm.hf.families import FAMILIES
from mixwell.lm.hf.forms import Experts, Layout, View

Names = tuple[tuple[str, ...], ...]  # one tuple an expert (or one in all); its parts stand below each other


STACKED = ("experts.gate_up_proj", "experts.down_proj")  # the fused 3-D form that any mixture may come in
WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "DataParallel", "model._orig_mod.": "torch.compile"}


class Recipe(NamedTuple):
    """How one canonical tensor is made of tensors in a file."""

    names: Names
    rows: tuple[int, ...]  # rows of each part
    shape: tuple[int, ...]  # of the canonical tensor
    stacked: bool  # whether the experts are a leading dimension
    transposed: bool = False  # the file exchanges the last two dimensions
    extra: bool = False  # the file has a leading dimension of 1 more
    order: tuple[int, ...] = ()  # the file's row of each canonical row, where they are not in order

    def part_shape(self, part: int) -> tuple[int, ...]:
        """Shape of a part in the file."""
        behind_rows = self.shape[2:] if self.stacked else self.shape[1:]
        shape = (self.rows[part], *behind_rows)
        if self.transposed:
            *before, rows, columns = shape
            shape = (*before, columns, rows)
        if self.extra:
            shape = (1, *shape)
        return shape

    @property
    def row_dim(self) -> int:
        """The dimension of rows: the first of a matrix or of a vector, counted from the back."""
        first = self.names[0][0]
        vectors = len(self.shape) == 1 or first.endswith("bias")
        return -1 if vectors else -2

    def declared(self, part: int) -> Declared:
        """What a part in the file must be."""
        return Declared(self.part_shape(part))


def recipes(arch: Mapping[str, Any], model_type: str, shapes: Mapping[str, tuple[int, ...]],
            present: Collection[str] = (), fused: bool = False) -> dict[str, Recipe]:
    """A recipe for each canonical name in `shapes`; among the layouts of experts, the one whose names are `present`."""
    family = FAMILIES[model_type]
    base = _base(family.layout, present)
    found = {}
    for name, shape in shapes.items():
        layouts = _layouts(name, model_type, base, shape, fused)
        there = [layout for layout in layouts if layout[0][0] in present]
        names = (there or layouts)[0]
        found[name] = _recipe(arch, names, shape, _view(family.layout, name))
    return found


def file_shapes(table: Mapping[str, Recipe]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in the file that a table of recipes asks for."""
    found: dict[str, tuple[int, ...]] = {}
    for recipe in table.values():
        shapes = [recipe.part_shape(part) for part in range(len(recipe.rows))]
        for names in recipe.names:
            found.update(zip(names, shapes))
    return found


def _base(layout: Layout, present: Collection[str]) -> str:
    """What every name begins with: as the embedding in the file does, else as it is written."""
    there = [base for base in layout.bases if base + layout.embedding in present]
    return (there or layout.bases)[0]


def _view(layout: Layout, name: str) -> View:
    inside = name.split(".", 2)[-1] if name.startswith("layers.") else name
    return layout.views.get(inside, View())


def _recipe(arch: Mapping[str, Any], names: Names, shape: tuple[int, ...], view: View) -> Recipe:
    parts = len(names[0])
    stacked = len(names) > 1 or (len(shape) == 3 and parts > 1)
    total = shape[1] if stacked else shape[0]
    rows = _rows(arch, total, parts)
    plain = Recipe(names, rows, shape, stacked, view.transposed, view.extra)
    if view.order is None:
        return plain
    order = view.order(arch, shape[plain.row_dim])
    return plain._replace(order=tuple(order))


def _layouts(name: str, model_type: str, base: str, shape: tuple[int, ...], fused: bool) -> list[Names]:
    """Names in the file that may make up canonical `name`, the preferred ones first."""
    family = FAMILIES[model_type]
    layout, experts = family.layout, family.experts
    if name == "head.weight":
        return [_one(layout.head)]
    if not name.startswith("layers."):
        whole = {"embed.weight": layout.embedding, **layout.whole}
        if name not in whole:
            raise MixwellError(f"{name} has no place in a {model_type} model.")
        return [_one(base + whole[name])]
    _, layer, rest = name.split(".", 2)
    prefix = base + layout.layer.format(layer)
    if experts is not None and len(shape) == 3:
        return _expert_layouts(prefix, experts, rest.endswith("gate_up_proj"), shape[0], fused)
    if rest not in layout.parts:
        raise MixwellError(f"{name} has no place in a {model_type} model.")
    parts = tuple(prefix + part for part in layout.parts[rest])
    return [(parts,), *_moved(parts, experts)]


def _moved(parts: tuple[str, ...], experts: Experts | None) -> list[Names]:
    """The router below `mlp`, where transformers keeps it in memory whatever the file's block is called."""
    if experts is None:
        return []
    moved = tuple(part.replace(f".{experts.block}.", ".mlp.") for part in parts)
    return [] if moved == parts else [(moved,)]


def _expert_layouts(prefix: str, experts: Experts, gate_up: bool, count: int, fused: bool) -> list[Names]:
    """One tensor an expert and part, or one for all."""
    parts = experts.stored[:2] if gate_up else experts.stored[2:]
    place = 0 if gate_up else 1
    apart = []
    for expert in range(count):
        stem = f"{prefix}{experts.block}.experts.{expert}"
        apart.append(tuple(f"{stem}.{part}.weight" for part in parts))
    own = f"{prefix}{experts.block}.{experts.fused[place]}"
    blocks = dict.fromkeys(("mlp", experts.block))
    joined = [f"{prefix}{block}.{STACKED[place]}" for block in blocks]
    if not experts.apart:
        return [_one(name) for name in dict.fromkeys((own, *joined))]
    together = [_one(name) for name in joined]
    if fused:
        return [*together, tuple(apart)]
    return [tuple(apart), *together]


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
        super().__init__(table)
        self._tensors, self._table, self._where = tensors, table, where
        self._forms: dict[str, Form] = {}  # of 128 experts each of whose parts asks for it

    def parts_of(self, table: Mapping[str, Recipe]) -> Mapping[str, Tensor] | None:
        """The tensors that canonical ones are made of, not looked at yet; None where `table` makes others."""
        return self._tensors if table == self._table else None

    def __getitem__(self, name: str) -> Tensor:
        recipe = self._table[name]
        room = torch.empty(_room_shape(recipe), dtype=self.form(name).dtype)
        experts = room if recipe.stacked else room.unsqueeze(0)
        for names, place in zip(recipe.names, experts):
            self._fill(recipe, names, place)
        return _canonical(room, recipe)

    def _fill(self, recipe: Recipe, names: tuple[str, ...], room: Tensor) -> None:
        """Copy the parts below each other, each once it is what config.json asks for."""
        places = [room] if _is_whole(recipe) else room.split(recipe.rows)
        for part, place in enumerate(places):
            expected = recipe.declared(part)
            copied(self._tensors, names[part], expected, self._where, into=place)

    def form(self, name: str) -> Form:
        """Type and shape of a canonical tensor; parts of several types meet in the widest."""
        if name not in self._forms:
            self._forms[name] = self._form(self._table[name])
        return self._forms[name]

    def _form(self, recipe: Recipe) -> Form:
        found = {form_of(self._tensors, part).dtype for names in recipe.names for part in names}
        widest = functools.reduce(torch.promote_types, found)  # type: ignore[arg-type]  # `check_names` saw them
        return Form(widest, recipe.shape)


def _ordered(tensor: Tensor, order: tuple[int, ...], dim: int) -> Tensor:
    """The rows of `tensor` that `order` names, in that order."""
    if not order:
        return tensor.contiguous()
    rows = torch.tensor(order)
    return tensor.index_select(dim, rows)


def _room_shape(recipe: Recipe) -> tuple[int, ...]:
    """Shape of a canonical tensor as it lies in the file."""
    return recipe.part_shape(0) if _is_whole(recipe) else recipe.shape


def _canonical(tensor: Tensor, recipe: Recipe) -> Tensor:
    """A tensor as it lies in the file, as mixwell holds it."""
    if recipe.extra:
        tensor = tensor.squeeze(0)
    if recipe.transposed:
        tensor = tensor.transpose(-1, -2)
    return _ordered(tensor, recipe.order, recipe.row_dim)


def _restored(tensor: Tensor, recipe: Recipe) -> Tensor:
    """A canonical tensor as it lies in the file."""
    places = range(len(recipe.order))
    back = sorted(places, key=recipe.order.__getitem__)
    tensor = _ordered(tensor, tuple(back), recipe.row_dim)
    if recipe.transposed:
        swapped = tensor.transpose(-1, -2)
        tensor = swapped.contiguous()
    if recipe.extra:
        tensor = tensor.unsqueeze(0)
    return tensor


class Scattered(Lazy):
    """A file's tensors, each cut out of a canonical one when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], table: Mapping[str, Recipe]) -> None:
        self._tensors, self._table = tensors, table
        self._shapes = file_shapes(table)
        super().__init__(self._shapes)
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
            self._last_name, self._last = canonical, _restored(self._tensors[canonical], self._table[canonical])
        tensor = self._last
        if expert is not None:
            tensor = tensor[expert]
        return tensor if _is_whole(self._table[canonical]) else tensor[rows]

    def form(self, name: str) -> Form:
        """Type and shape of a tensor of the file."""
        canonical, _, _ = self._places[name]
        whole = form_of(self._tensors, canonical)
        return Form(whole.dtype, self._shapes[name])


def _is_whole(recipe: Recipe) -> bool:
    """Whether the canonical tensor is one in the file."""
    parts = len(recipe.names[0])
    return parts == 1 and not recipe.stacked


def check_names(table: Mapping[str, Recipe], tensors: Mapping[str, Tensor], where: str,
                arch: Mapping[str, Any]) -> None:
    """Refuse a file that lacks a tensor, holds one that would not be used, or one of another type or shape."""
    stored, wanted = set(tensors), _declared(table)
    layout = FAMILIES[arch["architecture"]].layout
    _refuse_wrapped(stored, where)
    for name in sorted(set(wanted) - stored):
        raise MixwellError(f"{where}: {name} is missing.")
    ahead = f"{layout.bases[0]}{layout.layer}".format(arch["num_layers"])  # layers that predict further tokens
    predicts = "num_nextn_predict_layers" in FAMILIES[arch["architecture"]].defaults
    for name in sorted(stored - set(wanted)):
        if name.endswith(layout.constants):  # older files hold these; config.json says the same
            continue
        if predicts and name.startswith(ahead):
            continue
        embedding = table["embed.weight"].names[0][0]
        if name == layout.head and arch["tie_embeddings"] and _same(tensors, name, embedding):
            continue
        raise MixwellError(f"{where}: {name} has no place in this model; it would be dropped. Is config.json its own?")
    for name, declared in wanted.items():
        check_form(name, form_of(tensors, name), declared, where)


def _declared(table: Mapping[str, Recipe]) -> dict[str, Declared]:
    """What the tensors of the file must be, by their names there."""
    shapes = file_shapes(table)
    return {name: Declared(shape) for name, shape in shapes.items()}


def _same(tensors: Mapping[str, Tensor], first: str, second: str) -> bool:
    same_form = form_of(tensors, first) == form_of(tensors, second)
    return same_form and torch.equal(tensors[first], tensors[second])


def _refuse_wrapped(stored: set[str], where: str) -> None:
    """Name the wrapper that training left in front of every tensor's name."""
    for prefix, wrapper in WRAPPERS.items():
        if stored and all(name.startswith(prefix) for name in stored):
            raise MixwellError(f"{where}: every tensor's name begins with {prefix!r}, left by {wrapper}; save the "
                               "model inside the wrapper, or cut the prefix off the names.")
