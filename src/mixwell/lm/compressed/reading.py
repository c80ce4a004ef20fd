"""Quantised folders as canonical tensors: codes stay codes where a layer computes from them, else they are made plain.

A quantised matrix is several tensors below one stem: `X.weight_packed` or `X.weight`, `X.weight_scale`,
`X.weight_shape`, `X.weight_zero_point`. To all others it is one, `X.weight`, of the type that its scale has.

Legend: O rows, I width, C groups of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.formats.declared import Declared, Form, Fresh, Lazy, copied, form_of
from mixwell.kernels.codes import BYTE, joined_codes
from mixwell.lm.compressed.packing import unpacked, words_of
from mixwell.lm.compressed.scheme import PACKED, Scheme
from mixwell.lm.hf.tensors import Gathered, Recipe

CODED = ("gate_up_proj", "down_proj", "qkv.weight", "out.weight", "head.weight")  # ends of names that stay codes
WEIGHT, SCALE, SHAPE, ZERO = ".weight", ".weight_scale", ".weight_shape", ".weight_zero_point"
_INTEGERS = frozenset({torch.int8})
_WORDS = frozenset({torch.int32})
_SIZES = frozenset({torch.int64, torch.int32})


class Matrix(NamedTuple):
    """A quantised matrix: w = scale (codes - zero)."""

    codes_OI: Tensor  # uint8
    scale_OC: Tensor
    zero_OC: Tensor  # uint8; without zero points the middle code

    def plain(self) -> Tensor:
        """The numbers that the codes stand for, of the scale's type."""
        own = self.scale_OC.dtype
        groups = self.scale_OC.shape[-1]
        wide = torch.promote_types(own, torch.float32)
        numbers = self.codes_OI.to(wide)
        grouped = numbers.unflatten(-1, (groups, -1))
        middle = self.zero_OC.unsqueeze(-1)
        steps = grouped - middle
        scale = self.scale_OC.unsqueeze(-1)
        whole = steps * scale
        flat = whole.flatten(-2)
        return flat.to(own)


class Unpacked(Lazy):
    """The folder's tensors by the names of a plain folder; a quantised one is made plain when it is asked for."""

    def __init__(self, stored: Mapping[str, Tensor], scheme: Scheme, where: str) -> None:
        self._stored, self._scheme, self._where = stored, scheme, where
        self._forms: dict[str, Form] = {}
        parts: set[str] = set()
        for name in stored:
            if name.endswith(SCALE):
                stem = name.removesuffix(SCALE)
                self._forms[stem + WEIGHT] = self._form(stem)
                parts |= {stem + self._main, name, stem + SHAPE, stem + ZERO}
        plain = [name for name in stored if name not in parts]
        super().__init__([*plain, *self._forms])

    @property
    def _main(self) -> str:
        return ".weight_packed" if self._scheme.format == PACKED else WEIGHT

    def is_quantised(self, name: str) -> bool:
        """Whether a matrix of the folder is kept as codes."""
        return name in self._forms

    def form(self, name: str) -> Form:
        """Type and shape of a tensor."""
        if name in self._forms:
            return self._forms[name]
        return form_of(self._stored, name)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._forms:
            return self._stored[name]
        matrix = self.matrix(name)
        return matrix.plain()

    def _form(self, stem: str) -> Form:
        """The shape is what the file says of itself, and what the codes are checked against."""
        scale = form_of(self._stored, stem + SCALE)
        main = self._needed(stem + self._main)
        if self._scheme.format != PACKED:
            shape = form_of(self._stored, main).shape
        else:
            said = self._needed(stem + SHAPE)
            declared = Declared((2,), _SIZES, positive=True)
            sides = copied(self._stored, said, declared, self._where)
            shape = tuple(sides.tolist())
        self._check_groups(stem, shape)
        return Form(scale.dtype, shape)

    def _needed(self, name: str) -> str:
        if name not in self._stored:
            raise MixwellError(f"{self._where}: {name} is missing.")
        return name

    def _check_groups(self, stem: str, shape: tuple[int, ...]) -> None:
        place = f"{self._where}: {stem}{WEIGHT}"
        if len(shape) != 2:
            raise MixwellError(f"{place} is quantised and has shape {list(shape)}; expected a matrix.")
        width = shape[-1]
        try:
            self._scheme.groups(width)
        except ValueError as error:
            raise MixwellError(f"{place}: {error}.") from error

    def matrix(self, name: str) -> Matrix:
        """The codes of a quantised matrix, once every part is what the scheme and the shape ask for."""
        stem = name.removesuffix(WEIGHT)
        rows, width = self._forms[name].shape
        codes = self._codes(stem, rows, width)
        groups = self._scheme.groups(width)
        scale = self._scale(stem, rows, groups)
        zero = self._zero(stem, rows, groups)
        return Matrix(codes, scale, zero)

    def _codes(self, stem: str, rows: int, width: int) -> Tensor:
        bits = self._scheme.bits
        name = stem + self._main
        if self._scheme.format == PACKED:
            shape = (rows, words_of(width, bits))
            words = self._read(name, shape, _WORDS)
            return unpacked(words, bits, width)
        numbers = self._read(name, (rows, width), _INTEGERS)
        return self._unsigned(numbers, name)

    def _scale(self, stem: str, rows: int, groups: int) -> Tensor:
        shape = (1,) if self._scheme.tensor else (rows, groups)
        declared = Declared(shape, positive=True)
        scale = copied(self._stored, stem + SCALE, declared, self._where)
        whole = scale.expand(rows, groups)
        return whole.contiguous()

    def _zero(self, stem: str, rows: int, groups: int) -> Tensor:
        bits, name = self._scheme.bits, stem + ZERO
        if self._scheme.symmetric:
            middle = 2 ** (bits - 1)
            return torch.full((rows, groups), middle, dtype=torch.uint8)
        if self._scheme.format != PACKED:
            numbers = self._read(name, (rows, groups), _INTEGERS)
            return self._unsigned(numbers, name)
        shape = (words_of(rows, bits), groups)  # packed down the columns
        words = self._read(name, shape, _WORDS)
        zero = unpacked(words.T, bits, rows)
        return zero.T.contiguous()

    def _read(self, name: str, shape: tuple[int, ...], dtypes: frozenset[torch.dtype]) -> Tensor:
        declared = Declared(shape, dtypes)
        there = self._needed(name)
        return copied(self._stored, there, declared, self._where)

    def _unsigned(self, values: Tensor, name: str) -> Tensor:
        """Whole numbers with their signs as codes from 0 on."""
        middle = 2 ** (self._scheme.bits - 1)
        wide = values.to(torch.int16)
        codes = wide + middle
        kept = codes.clamp(0, 2 * middle - 1)
        if not torch.equal(kept, codes):
            raise MixwellError(f"{self._where}: {name} holds numbers of more than {self._scheme.bits} bits; the file "
                               "or its config.json is damaged.")
        return codes.to(torch.uint8)


class Coded(Fresh):
    """Canonical tensors of a quantised folder; a weight of `CODED` all of whose matrices are quantised stays codes.

    Eight bits with a scale a row are int8 and `.scale`, all others packed codes and their parts (`kernels.codes`). What
    else is quantised is made plain; where its inputs would be rounded, too, that raises `MixwellError`.
    """

    def __init__(self, unpacked: Unpacked, table: Mapping[str, Recipe], scheme: Scheme, where: str) -> None:
        self._unpacked, self._table, self._scheme = unpacked, table, scheme
        self._plain = Gathered(unpacked, table, where)
        self._coded: set[str] = set()
        self._places: dict[str, tuple[str, str]] = {}
        for name, recipe in table.items():
            self._places[name] = name, ""
            if self._stays(name, recipe):
                self._coded.add(name)
                self._places |= {f"{name}.{part}": (name, part) for part in self._parts}
            elif scheme.input_bits:
                self._check_inputs(name, recipe, where)
        self._last_name, self._last = "", dict[str, Tensor]()
        super().__init__(self._places)

    @property
    def _whole_rows(self) -> bool:
        """Whether the codes are int8 with a scale a row."""
        scheme = self._scheme
        simple = scheme.symmetric and not scheme.group_size and not scheme.input_bits
        return simple and scheme.bits == BYTE

    @property
    def _parts(self) -> list[str]:
        """What stands beside the codes."""
        if self._whole_rows:
            return ["scale"]
        zero = [] if self._scheme.symmetric else ["zero"]
        inputs = ["input_bits"] if self._scheme.input_bits else []
        return ["bits", "scale", *zero, *inputs]

    def _stays(self, name: str, recipe: Recipe) -> bool:
        if not name.endswith(CODED) or recipe.transposed or recipe.extra:
            return False
        width = recipe.shape[-1]
        fits = self._whole_rows or width % BYTE == 0
        quantised = self._quantised(recipe)
        return fits and all(quantised)

    def _quantised(self, recipe: Recipe) -> list[bool]:
        """Of each matrix that a canonical weight is made of, whether it is."""
        return [self._unpacked.is_quantised(part) for names in recipe.names for part in names]

    def _check_inputs(self, name: str, recipe: Recipe, where: str) -> None:
        quantised = self._quantised(recipe)
        if any(quantised):
            raise MixwellError(f"{where}: the inputs of {name} are rounded, which is computed of matrices in "
                               "attention, blocks and mixtures alone, all of a layer's alike.")

    def form(self, name: str) -> Form:
        """Type and shape of a tensor, without making it."""
        canonical, part = self._places[name]
        plain = self._plain.form(canonical)
        if canonical not in self._coded:
            return plain
        *rows, width = plain.shape
        groups = (*rows, self._scheme.groups(width))
        if part == "scale":
            return Form(torch.float32 if self._whole_rows else plain.dtype, groups)
        if self._whole_rows:
            return Form(torch.int8, plain.shape)
        packed = math.prod(plain.shape) * self._scheme.bits // BYTE
        shapes = {"": (packed,), "bits": tuple(rows), "zero": groups, "input_bits": (1,)}
        return Form(torch.uint8, shapes[part])

    def __getitem__(self, name: str) -> Tensor:
        canonical, part = self._places[name]
        if canonical not in self._coded:
            return self._plain[name]
        if part == "bits":  # asked for before anything is placed
            return self._bits(canonical)
        if canonical != self._last_name:
            self._last_name, self._last = canonical, self._made(canonical)
        return self._last[part].clone()

    def _bits(self, canonical: str) -> Tensor:
        rows = self._table[canonical].shape[:-1]
        return torch.full(rows, self._scheme.bits, dtype=torch.uint8)

    def _made(self, canonical: str) -> dict[str, Tensor]:
        """Codes of a canonical weight, and what stands beside."""
        recipe = self._table[canonical]
        experts = [_below(self._unpacked, names, recipe) for names in recipe.names]
        stacks = [torch.stack(part) for part in zip(*experts)]
        codes, scale, zero = stacks if recipe.stacked else experts[0]
        if self._whole_rows:
            numbers = signed(codes, BYTE)
            return {"": numbers, "scale": scale.float()}
        bits = self._bits(canonical)
        packed = joined_codes(codes, bits)
        rounding = torch.tensor([self._scheme.input_bits], dtype=torch.uint8)
        return {"": packed, "scale": scale, "zero": zero, "input_bits": rounding}


def _below(unpacked: Unpacked, names: tuple[str, ...], recipe: Recipe) -> Matrix:
    """The parts of one expert below each other, in the canonical order of rows."""
    parts = [unpacked.matrix(name) for name in names]
    whole = [torch.cat(part) for part in zip(*parts)]
    if recipe.order:
        order = torch.tensor(recipe.order)
        whole = [part[order] for part in whole]
    return Matrix(*whole)


def signed(codes: Tensor, bits: int) -> Tensor:
    """Codes as whole numbers with their signs, int8."""
    middle = 2 ** (bits - 1)
    wide = codes.to(torch.int16)
    numbers = wide - middle
    return numbers.to(torch.int8)
