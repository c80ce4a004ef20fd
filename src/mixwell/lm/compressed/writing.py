"""A quantised checkpoint as a Hugging Face folder in the layout of compressed-tensors, experts apart.

Legend: O rows, I width, C groups of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.formats.declared import FLOATING, Form, Lazy, form_of
from mixwell.kernels.codes import BYTE, CodedWeight, coded, parts_of, real_scale, unpack_codes, width_of
from mixwell.lm import folder as folders
from mixwell.lm.compressed.packing import packed, words_of
from mixwell.lm.compressed.reading import SCALE, SHAPE, WEIGHT, ZERO, signed
from mixwell.lm.compressed.scheme import METHOD, PACKED, PLAIN, Scheme, written
from mixwell.lm.hf.tensors import Recipe, Scattered, recipes
from mixwell.lm.hf.writing import model_type_of, write_config

HEAD = "head.weight"
OTHERS = {"table": "codes into a table", "codebooks": "sums of words", "order": "columns in an order of its own",
          "block_bits": "codes whose inputs are rounded block by block"}  # parts that make a weight another kind
_WAY = "`mixwell apply precision.integers --in MODEL --out SMALL bits=4 group_size=128`, say"


def write_compressed(checkpoint: Checkpoint, path: str | Path) -> Path:
    """Write a checkpoint of `precision.int8`, `integers` or another method of whole-number codes, and return its path.

    Weights alone in codes are packed ("pack-quantized"); where inputs are rounded, too, each code takes a byte
    ("int-quantized"). Tokenizer and lineage come along. A model that no Hugging Face decoder computes, one that is not
    quantised, codes that are no whole numbers, and codes of several widths raise `MixwellError`, and nothing is
    written.
    """
    model_type = model_type_of(checkpoint.arch)
    if model_type == folders.OWN:
        raise MixwellError("no Hugging Face decoder computes this model, so no other program would load it; `mixwell "
                           "apply convert.densify` or another conversion may bring it to one that does.")
    arch = {**checkpoint.arch, "architecture": model_type}
    table = recipes(arch, model_type, folders.shapes(arch))
    weights = _weights(checkpoint)
    scheme = _scheme_of(weights)
    tensors = Compressed(checkpoint.tensors, table, weights, scheme)
    config = write_config(arch, model_type)
    config["quantization_config"] = written(scheme, tensors.ignored)
    return folders.place(checkpoint, path, arch, config, tensors)


class Weight(NamedTuple):
    """What is known of a quantised weight before its codes are looked at."""

    bits: int
    groups: int
    width: int
    symmetric: bool
    input_bits: int


def _weights(checkpoint: Checkpoint) -> dict[str, Weight]:
    """The quantised weights of a checkpoint."""
    found = {}
    for name in checkpoint.tensors:
        form = form_of(checkpoint.tensors, name)
        if f"{name}.bits" in checkpoint.tensors:
            found[name] = _coded(checkpoint.tensors, name)
        elif form.dtype == torch.int8 and f"{name}.scale" in checkpoint.tensors:
            found[name] = Weight(BYTE, 1, form.shape[-1], True, 0)
    if not found:
        raise MixwellError(f"the model's weights are whole; {METHOD} holds quantised ones. Quantise it first: {_WAY}.")
    return found


def _coded(tensors: Mapping[str, Tensor], name: str) -> Weight:
    for part, kind in OTHERS.items():
        if f"{name}.{part}" in tensors:
            raise MixwellError(f"{name} is kept as {kind}, which {METHOD} has no form for here; quantise the model to "
                               f"whole numbers: {_WAY}.")
    parts = dict(parts_of(tensors, name))
    bits = parts["bits"].unique().tolist()
    if len(bits) > 1:
        raise MixwellError(f"{name} has rows of {', '.join(map(str, bits))} bits; {METHOD} has one width for a matrix. "
                           f"Quantise the model to one: {_WAY}.")
    width = width_of(tensors[name], parts["bits"])
    groups = parts["scale"].shape[-1]
    rounding = int(parts["input_bits"]) if "input_bits" in parts else 0
    return Weight(bits[0], groups, width, "zero" not in parts, rounding)


def _scheme_of(weights: Mapping[str, Weight]) -> Scheme:
    """The one way in which all are quantised."""
    whole_rows = all(weight.groups == 1 for weight in weights.values())
    ways = {name: _way(weight, whole_rows) for name, weight in weights.items()}
    first, scheme = next(iter(ways.items()))
    for name, own in ways.items():
        if own != scheme:
            raise MixwellError(f"{name} is quantised in another way than {first} ({_words(own)}; {_words(scheme)}); "
                               f"one way for all matrices is written. Quantise the model to one: {_WAY}.")
    return scheme


def _way(weight: Weight, whole_rows: bool) -> Scheme:
    size = 0 if whole_rows else weight.width // weight.groups
    form = PLAIN if weight.input_bits else PACKED
    return Scheme(format=form, bits=weight.bits, group_size=size, symmetric=weight.symmetric,
                  input_bits=weight.input_bits)


def _words(scheme: Scheme) -> str:
    groups = f"groups of {scheme.group_size}" if scheme.group_size else "whole rows"
    kind = "symmetric" if scheme.symmetric else "with zero points"
    inputs = f", inputs in {scheme.input_bits} bits" if scheme.input_bits else ""
    width = f"{scheme.bits} bits"
    return f"{width}, {groups}, {kind}{inputs}"


class Compressed(Lazy):
    """The folder's tensors, each cut out of a canonical one, and those of codes packed, when they are asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], table: Mapping[str, Recipe], weights: Mapping[str, Weight],
                 scheme: Scheme) -> None:
        self._tensors, self._table = tensors, table
        self._weights, self._scheme = weights, scheme
        plain = {name: recipe for name, recipe in table.items() if name not in weights}
        self._plain = Scattered(tensors, plain)
        self._parts: dict[str, tuple[str, int, slice, str]] = {}  # canonical name, matrix of it, rows, part
        for name in weights:
            self._add(name, table[name])
        self._last_name, self._last = "", dict[str, Tensor]()
        super().__init__([*self._plain, *self._parts])

    def _add(self, name: str, recipe: Recipe) -> None:
        if recipe.transposed or not all(part.endswith(WEIGHT) for names in recipe.names for part in names):
            raise MixwellError(f"{name} does not lie in a file of this decoder as matrices of [out, in], one a module; "
                               f"{METHOD} takes no others.")
        for matrix, names in enumerate(recipe.names):
            start = 0
            for part, rows in zip(names, recipe.rows):
                for suffix in self._suffixes:
                    key = part.removesuffix(WEIGHT) + suffix
                    self._parts[key] = name, matrix, slice(start, start + rows), suffix
                start += rows

    @property
    def _suffixes(self) -> list[str]:
        zero = [] if self._scheme.symmetric else [ZERO]
        if self._scheme.format == PACKED:
            return [".weight_packed", SCALE, SHAPE, *zero]
        return [WEIGHT, SCALE, *zero]

    @property
    def ignored(self) -> list[str]:
        """Modules whose matrices are whole."""
        found = []
        for canonical, recipe in self._table.items():
            inside = canonical == HEAD or canonical.startswith("layers.")  # embeddings are no linear maps
            if inside and canonical not in self._weights and len(recipe.part_shape(0)) == 2:
                found += [part.removesuffix(WEIGHT) for names in recipe.names for part in names]
        return found if HEAD in self._table else [*found, "lm_head"]  # tied: no matrix of its own

    def form(self, name: str) -> Form:
        """Type and shape of a tensor."""
        if name not in self._parts:
            return self._plain.form(name)
        canonical, _, rows, suffix = self._parts[name]
        if suffix == SHAPE:
            return Form(torch.int64, (2,))
        weight = self._weights[canonical]
        count = rows.stop - rows.start
        if suffix == SCALE:
            dtype = self._scale_dtype(canonical)
            return Form(dtype, (count, weight.groups))
        width = weight.groups if suffix == ZERO else weight.width
        if self._scheme.format != PACKED:
            return Form(torch.int8, (count, width))
        bits = self._scheme.bits
        if suffix == ZERO:
            return Form(torch.int32, (words_of(count, bits), width))
        return Form(torch.int32, (count, words_of(width, bits)))

    def _scale_dtype(self, name: str) -> torch.dtype:
        """At least the model's own type, in which others take the product."""
        own = form_of(self._tensors, f"{name}.scale").dtype
        model = form_of(self._tensors, "embed.weight")
        wide = own if own in FLOATING else torch.float32  # a power of two
        return torch.promote_types(wide, model.dtype)  # type: ignore[arg-type]  # floating, both

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._parts:
            return self._plain[name]
        canonical, matrix, rows, suffix = self._parts[name]
        if canonical != self._last_name:
            self._last_name, self._last = canonical, self._made(canonical)
        if suffix == SHAPE:
            sides = rows.stop - rows.start, self._weights[canonical].width
            return torch.tensor(sides)
        own = self._last[suffix if suffix in (SCALE, ZERO) else WEIGHT][matrix]
        cut = own[rows]
        if suffix == SCALE:
            return cut.to(self._scale_dtype(canonical))
        return self._as_stored(cut, suffix == ZERO)

    def _as_stored(self, codes: Tensor, down: bool) -> Tensor:
        """Codes as the format has them; zero points are packed down the columns."""
        bits = self._scheme.bits
        if self._scheme.format != PACKED:
            return signed(codes, bits)
        if not down:
            return packed(codes, bits)
        columns = packed(codes.T, bits)
        return columns.T.contiguous()

    def _made(self, name: str) -> dict[str, Tensor]:
        """Codes, scale and zero of a canonical weight as [E, O, ...], rows in the file's order."""
        stored, order = self._tensors[name], self._table[name].order
        parts = dict(parts_of(self._tensors, name))
        codes = _codes(coded(stored, parts)) if "bits" in parts else _unsigned(stored)
        found = {WEIGHT: codes, SCALE: _floating(parts["scale"])}
        if "zero" in parts:
            found[ZERO] = parts["zero"]
        stacks = {part: _stack(value) for part, value in found.items()}
        if not order:
            return stacks
        places = range(len(order))
        back = sorted(places, key=order.__getitem__)
        return {part: value[:, back] for part, value in stacks.items()}


def _floating(scale: Tensor) -> Tensor:
    """A scale as it is, or what the exponent of a power of two stands for."""
    return scale if scale.dtype in FLOATING else real_scale(scale)


def _stack(value: Tensor) -> Tensor:
    """A matrix as a stack of one."""
    return value.unsqueeze(0) if value.ndim == 2 else value


def _codes(weight: CodedWeight) -> Tensor:
    """The codes uint8 [E, O, I] of a weight whose rows are all of one width."""
    width, found = weight.shape[-1], []
    for (block,) in weight.blocks:
        own = weight.codes[block.start : block.stop]
        bytes_each = width * block.bits // BYTE
        rows = own.view(-1, bytes_each)
        found.append(unpack_codes(rows, block.bits))
    return torch.stack(found)


def _unsigned(numbers: Tensor) -> Tensor:
    """int8 as codes from 0 on."""
    middle = 2 ** (BYTE - 1)
    codes = numbers.to(torch.int16) + middle
    return codes.to(torch.uint8)
