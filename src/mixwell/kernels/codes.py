"""Weights in few bits: codes of 1 to 8 bits, packed, with a scale for each group of numbers in a row.

    w[r, i] = scale[r, g] (code[r, i] - zero[r, g])     or     scale[r, g] table[code[r, i]],     g = i // G
    w[r, i] = scale[r, g] sum_m codebooks[m, code[r, i // d, m], i % d]

A stored weight X is the packed codes [bytes] under its own name and its `PARTS` beside: X.bits [..., O], of each row;
X.scale [..., O, I / G], floating or the exponent of a power of two (uint8, 2^(s - 127)); X.zero [..., O, I / G], uint8,
2^(bits - 1) where there is none; X.table [..., 2^bits]; X.input_bits [1], where the inputs are rounded, too.
X.codebooks [..., M, 2^B, d], where d numbers are the sum of M words of 2^B each: then bits is M B / d, and the values
that are packed are a row's words of B bits, those of the same d numbers side by side.
X.order int32 [..., I], where a row is kept with its numbers in another order: value i stands for column order[i].
X.block_bits uint8 [..., N], where the inputs, in that order and cut in N blocks, are rounded block by block.
The rows of a matrix lie together by their bits, those with fewest first, each in order; the matrices of a stack one
behind the other. A row's code is cut into planes of 4, 2 and 1 bits, lowest bits first (8 bits: one plane); byte j of
a plane of p bits holds the values j, j + n, j + 2 n, ... with n = p I / 8, the first in the lowest bits.

Legend: O rows, I width, G width of a group, C groups of a row, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.kernels import straight
from mixwell.kernels.probe import choices
from mixwell.kernels.products import through

BESIDE = ("scale", "zero", "table", "codebooks", "order", "block_bits")  # parts that a stack has for each expert
PARTS = ("bits", "input_bits", *BESIDE)  # names behind a coded weight's own
BYTE = 8
E8M0_BIAS = 127  # of scales that are exponents


def planes(bits: int) -> tuple[int, ...]:
    """Widths of the planes of a code, lowest bits first."""
    if bits == BYTE:
        return (BYTE,)
    return tuple(width for width in (4, 2, 1) if bits & width)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., I] below 2^bits as bytes [..., I bits / 8]; the last plane of a row must fill its bytes."""
    width = codes.shape[-1]
    least = BYTE // planes(bits)[-1]
    if width % least:
        raise ValueError(f"rows of {width} codes; expected a multiple of {least}")
    packed, shift = [], 0
    for plane in planes(bits):
        mask = 2**plane - 1
        values = (codes >> shift) & mask
        parts = values.unflatten(-1, (BYTE // plane, -1))
        packed.append(_joined(parts, plane))
        shift += plane
    return torch.cat(packed, -1)


def _joined(parts: Tensor, width: int) -> Tensor:
    """Parts [..., k, n] of `width` bits as bytes [..., n]."""
    total: Any = 0
    shift = 0
    for part in parts.unbind(-2):
        total = total | (part << shift)
        shift += width
    return total


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """The codes uint8 [..., I] of bytes [..., I bits / 8]."""
    width = packed.shape[-1] * BYTE // bits
    sizes = [width * plane // BYTE for plane in planes(bits)]
    total: Any = 0
    shift = 0
    parts = packed.split(sizes, -1)
    for plane, part in zip(planes(bits), parts):
        values = _apart(part, plane)
        total = total | (values << shift)
        shift += plane
    return total


def _apart(part: Tensor, width: int) -> Tensor:
    """The values of a plane [..., I] in their order."""
    places = range(0, BYTE, width)
    mask = 2**width - 1
    values = [(part >> place) & mask for place in places]
    return torch.cat(values, -1)


class Block(NamedTuple):
    """The rows of a matrix that have so many bits."""

    bits: int
    rows: Tensor | None  # which, None for all
    start: int  # of their bytes among all
    stop: int

    @property
    def planes(self) -> tuple[int, ...]:
        """Widths of the planes of a code, lowest bits first."""
        return planes(self.bits)


def blocks_of(bits: Tensor, width: int) -> tuple[tuple[Block, ...], ...]:
    """Where the codes of each matrix lie; bits uint8 [O] of one matrix or [E, O] of a stack, in rows of `width`."""
    found, start = [], 0
    count = bits.shape[-1]
    for bits_O in bits.reshape(-1, count):
        own = []
        for value in bits_O.unique().tolist():
            same = bits_O == value
            rows = same.nonzero().squeeze(-1)
            each = width * value // BYTE
            stop = start + len(rows) * each
            which = None if len(rows) == count else rows
            own.append(Block(value, which, start, stop))
            start = stop
        found.append(tuple(own))
    return tuple(found)


def joined_words(codes: Tensor, width: int) -> Tensor:
    """Words [..., O, N] of `width` bits as the bytes of a stored weight with codebooks."""
    packed = pack_codes(codes, width)
    return packed.flatten()


def joined_codes(codes: Tensor, bits: Tensor) -> Tensor:
    """Codes [..., O, I] of rows that have `bits` [..., O] as the bytes of a stored weight."""
    matrices = codes.reshape(-1, *codes.shape[-2:])
    blocks = blocks_of(bits, codes.shape[-1])
    parts = []
    for matrix, own in zip(matrices, blocks):
        for block in own:
            rows = _picked(matrix, block)
            packed = pack_codes(rows, block.bits)
            parts.append(packed.flatten())
    return torch.cat(parts)


def real_scale(scale: Tensor) -> Tensor:
    """A stored scale as numbers, float32 or wider."""
    if scale.dtype == torch.uint8:
        raw = scale.int() << 23  # the exponent's place in a float32; 2^-127 alone is written without one
        whole = torch.where(scale > 0, raw, 1 << 22)
        return whole.to(torch.int32).view(torch.float32)
    wide = torch.promote_types(scale.dtype, torch.float32)
    return scale.to(wide)


def rounded_inputs(x: Tensor, bits: int | Tensor) -> Tensor:
    """Each row of x [..., D] rounded to `bits` bits ([..., 1]): symmetric, its largest magnitude the last step."""
    levels = 2 ** (bits - 1) - 1
    largest = x.abs().amax(-1, keepdim=True)
    least = torch.finfo(x.dtype).tiny
    step = (largest / levels).clamp_min(least)
    steps = (x / step).round()
    return steps * step


def rounded_blocks(x: Tensor, bits_N: Tensor) -> Tensor:
    """Each row of x [..., D], cut in N blocks, rounded block by block to so many bits; see `rounded_inputs`."""
    blocks = x.unflatten(-1, (len(bits_N), -1))
    moved = rounded_inputs(blocks, bits_N.unsqueeze(-1))
    return moved.flatten(-2)


def summed_words(codebooks: Tensor, codes: Tensor) -> Tensor:
    """The sum of M words for each d numbers: codebooks [M, 2^B, d], codes [O, I M / d] -> [O, I]."""
    count = codebooks.shape[0]
    total: Any = 0
    for m, words in enumerate(codebooks):
        own = codes[:, m::count]
        total = total + words[own]
    whole: Tensor = total
    return whole.flatten(-2)


@dataclass(frozen=True, eq=False)
class CodedWeight:
    """A weight [O, I], or a stack [E, O, I], kept as codes; it is made plain one matrix at a time, where it is used."""

    codes: Tensor
    blocks: tuple[tuple[Block, ...], ...]  # of each matrix
    shape: torch.Size
    scale: Tensor
    zero: Tensor | None = None
    table: Tensor | None = None
    input_bits: int = 0  # 0: the inputs stay as they are
    codebooks: Tensor | None = None
    order: Tensor | None = None
    block_bits: Tensor | None = None

    @property
    def requires_grad(self) -> bool:
        """Codes take no gradient."""
        return False

    def __getitem__(self, expert: int | None) -> CodedWeight:
        if expert is None:
            blocks, shape = self.blocks, torch.Size((1, *self.shape))
        else:
            blocks, shape = (self.blocks[expert],), self.shape[1:]
        parts: dict[str, Any] = {}
        for name in BESIDE:
            part = getattr(self, name)
            parts[name] = None if part is None else part[expert]
        return CodedWeight(self.codes, blocks, shape, input_bits=self.input_bits, **parts)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight as a plain tensor."""
        if len(self.shape) == 3:
            experts = range(self.shape[0])
            matrices = [self[e].dequantised(dtype) for e in experts]
            return torch.stack(matrices)
        found = straight.dequantised(self, dtype)
        if found is not None:
            return self._in_place(found)
        (blocks,) = self.blocks
        wide = torch.promote_types(dtype, torch.float32)
        if len(blocks) == 1:
            rows = self._rows(blocks[0], wide)
            return self._in_place(rows.to(dtype))
        whole = self.scale.new_zeros(self.shape, dtype=wide)
        for block in blocks:
            whole[block.rows] = self._rows(block, wide)
        return self._in_place(whole.to(dtype))

    def _in_place(self, rows: Tensor) -> Tensor:
        """Rows with every number in its own column."""
        return rows if self.order is None else _sent_back(rows, self.order)

    def _rows(self, block: Block, dtype: torch.dtype) -> Tensor:
        """The rows of a block as numbers."""
        bytes_each = self.shape[-1] * block.bits // BYTE
        own = self.codes[block.start : block.stop]
        packed = own.view(-1, bytes_each)
        levels = self._levels(packed, block, dtype)
        scale = real_scale(_picked(self.scale, block))
        step = scale.to(dtype).unsqueeze(-1)
        grouped = levels.unflatten(-1, (scale.shape[-1], -1))
        whole = grouped * step
        return whole.flatten(-2)

    def _levels(self, packed: Tensor, block: Block, dtype: torch.dtype) -> Tensor:
        """What the codes stand for before the scale."""
        if self.codebooks is not None:
            words = self.codebooks.shape[-2]
            codes = unpack_codes(packed, words.bit_length() - 1)
            return summed_words(self.codebooks.to(dtype), codes.int())
        codes = unpack_codes(packed, block.bits)
        if self.table is not None:
            return self.table.to(dtype)[codes.int()]
        numbers = codes.to(dtype)
        if self.zero is None:
            return numbers - 2 ** (block.bits - 1)
        zero = _picked(self.zero, block)
        groups = zero.shape[-1]
        grouped = numbers.unflatten(-1, (groups, -1))
        middle = zero.to(dtype).unsqueeze(-1)
        moved = grouped - middle
        return moved.flatten(-2)

    def linear(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]; rounded inputs are multiplied as the numbers that they stand for."""
        moved = self.inputs(x)
        rows_ND = moved.reshape(-1, moved.shape[-1])
        y = self._product(rows_ND)
        return y.view(*x.shape[:-1], self.shape[0])

    def _product(self, x_ND: Tensor) -> Tensor:
        """Few rows with the codes as they are, many with the weight made plain for them."""
        sorted_ND = x_ND if self.order is None else x_ND.index_select(-1, self.order)
        found = straight.product(self, sorted_ND)
        if found is not None:
            return found
        weight = self.dequantised(x_ND.dtype)
        if not x_ND.is_cpu or x_ND.dtype != torch.float32:
            return F.linear(x_ND, weight)
        library = choices().library("nt", x_ND.shape[0], weight.numel())
        return through(library, x_ND, weight)

    def inputs(self, x: Tensor) -> Tensor:
        """What is multiplied of x [..., I]; a gradient passes straight through the rounding."""
        if not self.input_bits and self.block_bits is None:
            return x
        still = x.detach()
        moved = self._rounded(still)
        return x + (moved - still) if x.requires_grad else moved

    def _rounded(self, x: Tensor) -> Tensor:
        if self.block_bits is None:
            return rounded_inputs(x, self.input_bits)
        if self.order is None:
            return rounded_blocks(x, self.block_bits)
        sorted_ = x.index_select(-1, self.order)
        moved = rounded_blocks(sorted_, self.block_bits)
        return _sent_back(moved, self.order)


def _sent_back(values: Tensor, order_I: Tensor) -> Tensor:
    """Values [..., I] that stand in `order_I`, each in its own column again."""
    back_I = order_I.argsort()
    return values.index_select(-1, back_I)  # several times as fast as values[..., back_I]


def _picked(part: Tensor, block: Block) -> Tensor:
    return part if block.rows is None else part[block.rows]


def coded(codes: Tensor, parts: Mapping[str, Tensor],
          blocks: tuple[tuple[Block, ...], ...] | None = None) -> CodedWeight:
    """The weight that packed `codes` are with their `parts` (named as in `PARTS`)."""
    bits = parts["bits"]
    width = width_of(codes, bits)
    own = blocks_of(bits, width) if blocks is None else blocks
    shape = torch.Size((*bits.shape, width))
    rounding = parts.get("input_bits")
    input_bits = 0 if rounding is None else int(rounding)
    beside: dict[str, Any] = {name: parts.get(name) for name in BESIDE}
    return CodedWeight(codes, own, shape, input_bits=input_bits, **beside)


def width_of(codes: Tensor, bits: Tensor) -> int:
    """The width of the rows that packed codes hold."""
    return codes.numel() * BYTE // int(bits.sum())


def parts_of(stored: Mapping[str, Tensor], name: str) -> Iterator[tuple[str, Tensor]]:
    """The parts that are stored beside the codes `name`."""
    for part in PARTS:
        companion = f"{name}.{part}"
        if companion in stored:
            yield part, stored[companion]


def plain_weight(stored: Mapping[str, Tensor], name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """A stored weight as a plain tensor, whether it is coded or not."""
    parts = dict(parts_of(stored, name))
    weight = stored[name]
    return coded(weight, parts).dequantised(dtype) if "bits" in parts else weight.to(dtype)
