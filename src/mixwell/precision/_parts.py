"""What the methods of this room share: which weights are quantised, grids, and codes as stored tensors.

Legend: O rows, I width, G width of a group, C groups of a row, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.formats.declared import FLOATING
from mixwell.kernels.codes import BESIDE, BYTE, CodedWeight, coded, joined_codes, joined_words, real_scale

WEIGHTS = ("gate_up_proj", "down_proj", "qkv.weight", "out.weight")  # endings of the names that are quantised
HEAD = "head.weight"


@dataclass(frozen=True, eq=False, kw_only=True)
class Coded:
    """A weight [..., O, I] as codes that are not packed yet; see `kernels.codes` for the parts."""

    codes: Tensor  # uint8 [..., O, I]; of words [..., O, I M / d] where there are codebooks
    bits: Tensor  # uint8 [..., O]
    scale: Tensor  # [..., O, C]
    zero: Tensor | None = None  # uint8 [..., O, C]
    table: Tensor | None = None  # [..., 2^bits]
    input_bits: int = 0
    codebooks: Tensor | None = None  # [..., M, 2^B, d]
    order: Tensor | None = None  # int32 [..., I], of the columns that the codes stand for
    block_bits: Tensor | None = None  # uint8 [..., N], of the inputs' blocks in that order

    def stored(self, name: str) -> dict[str, Tensor]:
        """The tensors of a checkpoint that it is, packed."""
        found = {name: self._packed()}
        for part in ("bits", *BESIDE):
            value: Tensor | None = getattr(self, part)
            if value is not None:
                found[f"{name}.{part}"] = value.contiguous()
        if self.input_bits:
            rounding = torch.tensor([self.input_bits])
            found[f"{name}.input_bits"] = rounding.to(torch.uint8)
        return found

    def _packed(self) -> Tensor:
        if self.codebooks is None:
            return joined_codes(self.codes, self.bits)
        words = self.codebooks.shape[-2]
        return joined_words(self.codes, words.bit_length() - 1)

    def weight(self) -> CodedWeight:
        """The weight as it will be computed with."""
        stored = self.stored("w")
        parts = {name.removeprefix("w."): value for name, value in stored.items()}
        return coded(stored["w"], parts)


def is_weight(name: str, head: bool) -> bool:
    """Whether the tensor `name` is one that is quantised."""
    if name == HEAD:
        return head
    return name.startswith("layers.") and name.endswith(WEIGHTS)


def chosen(checkpoint: Checkpoint, head: bool) -> list[str]:
    """Names of the weights to quantise.

    Raises `MixwellError` where one is quantised already, is of a width that bytes do not hold, where experts would stay
    whole without a word, or where there is none.
    """
    found = [name for name in checkpoint.tensors if is_weight(name, head)]
    for name in found:
        _check_whole(name, checkpoint.tensors[name])
    known = set(found)
    for name, tensor in checkpoint.tensors.items():
        if name not in known and tensor.ndim == 3 and ".channel_mixer." in name and ".router." not in name:
            raise MixwellError(f"{name} {list(tensor.shape)} looks like experts under another name than {WEIGHTS}; "
                               "they would stay whole. Convert the model to a plain mixture first.")
    if not found:
        raise MixwellError(f"no weight to quantise among {len(checkpoint.tensors)} tensors; expected names ending in "
                           f"{WEIGHTS}.")
    return found


def _check_whole(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATING:
        raise MixwellError(f"{name} is quantised already; hand in a model with full weights.")
    width = tensor.shape[-1]
    if width % BYTE:
        raise MixwellError(f"{name} has rows of {width}; expected a multiple of {BYTE} (precision.int8 "
                           "takes any width).")


def with_codes(checkpoint: Checkpoint, made: Mapping[str, Coded],
               record: Mapping[str, Any] | None = None) -> Checkpoint:
    """The checkpoint with these weights as codes."""
    tensors = dict(checkpoint.tensors)
    for name, weight in made.items():
        tensors |= weight.stored(name)
    # "auto": what can be loaded elsewhere is decided anew from the tensors
    arch = {**checkpoint.arch, "architecture": "auto"}
    return checkpoint.derive(arch=arch, tensors=tensors, record=record)


def each_weight(checkpoint: Checkpoint, head: bool, encode: Callable[[Tensor], Coded],
                record: Mapping[str, Any] | None = None) -> Checkpoint:
    """The checkpoint with each weight encoded by itself."""
    names = chosen(checkpoint, head)
    made = {name: named(name, encode, checkpoint.tensors[name]) for name in names}
    return with_codes(checkpoint, made, record)


def named(name: str, work: Callable[..., Any], *given: Any) -> Any:
    """What `work` gives; a ValueError of it names the tensor."""
    try:
        return work(*given)
    except MixwellError:
        raise
    except ValueError as error:
        raise MixwellError(f"{name}: {error}") from error


def group_width(weight: Tensor, group_size: int) -> int:
    """G of a weight [..., I], 0 standing for the whole row; raises ValueError where it does not divide a row."""
    width = weight.shape[-1]
    size = group_size or width
    if width % size == 0:
        return size
    smaller = range(size, 0, -1)
    fitting = next(s for s in smaller if width % s == 0)
    raise ValueError(f"group_size {size} does not divide rows of {width}; {fitting} does, and 0 takes whole rows")


def grouped(weight: Tensor, group_size: int) -> Tensor:
    """The weight in float32 or wider as [..., O, C, G]; a group size of 0 takes the whole row."""
    size = group_width(weight, group_size)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    wide = weight.to(dtype)
    return wide.unflatten(-1, (-1, size))


def row_bits(weight: Tensor, bits: int) -> Tensor:
    """So many bits for each row."""
    rows = weight.shape[:-1]
    return torch.full(rows, bits, dtype=torch.uint8, device=weight.device)


def top(bits: int) -> int:
    """The largest step of a symmetric grid."""
    return 2 ** (bits - 1) - 1


@dataclass(frozen=True, eq=False)
class Grid:
    """Steps s (c - z) of each group, c from 0 to 2^bits - 1; a symmetric one leaves its lowest code out."""

    scale: Tensor  # [..., O, C]
    zero: Tensor | None  # None: symmetric
    bits: int

    def codes(self, values: Tensor) -> Tensor:
        """The nearest code of each value [..., O, C, G], uint8."""
        step = self.real.unsqueeze(-1)
        steps = (values / step).round()
        if self.zero is None:
            most = top(self.bits)
            numbers = steps.clamp(-most, most)
            return (numbers + most + 1).to(torch.uint8)
        moved = steps + self.zero.unsqueeze(-1)
        most = 2**self.bits - 1
        return moved.clamp(0, most).to(torch.uint8)

    def values(self, codes: Tensor) -> Tensor:
        """What codes [..., O, C, G] stand for."""
        step = self.real.unsqueeze(-1)
        numbers = codes.to(step.dtype)
        if self.zero is None:
            numbers = numbers - top(self.bits) - 1
        else:
            numbers = numbers - self.zero.unsqueeze(-1)
        return numbers * step

    def nearest(self, values: Tensor) -> Tensor:
        """The values [..., O, C, G] rounded to the grid."""
        return self.values(self.codes(values))

    @property
    def real(self) -> Tensor:
        """The scale, float32 or wider."""
        return real_scale(self.scale)


def grid_of(groups: Tensor, bits: int, symmetric: bool) -> Grid:
    """The grid over each group [..., O, C, G]: to its largest magnitude, or from its least to its largest with 0 in.

    Symmetric scales are bfloat16 and asymmetric ones float32: bfloat16 would cut their range by more than a rounding.
    """
    if symmetric:
        largest = groups.abs().amax(-1)
        step = largest / top(bits)
        return Grid(positive(step.to(torch.bfloat16)), None, bits)
    low = groups.amin(-1).clamp_max(0)
    high = groups.amax(-1).clamp_min(0)
    steps = 2**bits - 1
    step = (high - low) / steps
    scale = positive(step.float())
    zero = (-low / scale).round()
    return Grid(scale, zero.to(torch.uint8), bits)


def positive(scale: Tensor) -> Tensor:
    """1 in place of a scale of 0, of a group of zeros, or of numbers too small for the scale's type."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def on_grid(weight: Tensor, grid: Grid, codes: Tensor, input_bits: int = 0) -> Coded:
    """Codes [..., O, C, G] on a grid as those of a weight [..., O, I]."""
    bits = row_bits(weight, grid.bits)
    return Coded(codes=codes.flatten(-2), bits=bits, scale=grid.scale, zero=grid.zero, input_bits=input_bits)


def nearest(weight: Tensor, bits: int, group_size: int, symmetric: bool, input_bits: int = 0) -> Coded:
    """The weight rounded to the nearest steps of its groups' grids."""
    groups = grouped(weight, group_size)
    grid = grid_of(groups, bits, symmetric)
    return on_grid(weight, grid, grid.codes(groups), input_bits)


def rounded(weight: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    """The numbers that the codes of `nearest` stand for, float64."""
    coded = nearest(weight, bits, group_size, symmetric)
    return coded.weight().dequantised(torch.float64)


def by_table(weight: Tensor, codes: Tensor, scale: Tensor, table: Tensor) -> Coded:
    """Codes [..., O, C, G] into a table [2^bits], which every matrix of a stack [..., O, I] gets, as its weight's."""
    bits = len(table).bit_length() - 1
    whole = codes.flatten(-2)
    lead = weight.shape[:-2]
    each = table.expand(*lead, -1)
    return Coded(codes=whole.to(torch.uint8), bits=row_bits(weight, bits), scale=scale, table=each)


def matrices(weight: Tensor) -> Iterator[tuple[int | None, Tensor]]:
    """The matrix that a weight is, or those of a stack with their numbers."""
    if weight.ndim == 2:
        yield None, weight
        return
    yield from enumerate(weight)


def joined(weight: Tensor, parts: list[Coded]) -> Coded:
    """The codes of a weight's `matrices` as those of the weight."""
    return parts[0] if weight.ndim == 2 else _stacked(parts)


def each_coded(weight: Tensor, facts: Tensor, ndim: int, encode: Callable[[Tensor, Tensor], Coded]) -> Coded:
    """The codes of a matrix, or of each expert of a stack, by facts of inputs: in `ndim` dimensions all experts'."""
    each: Iterable[Tensor] = repeat(facts) if facts.ndim == ndim else facts
    parts = []
    for (_, matrix), own in zip(matrices(weight), each):
        coded = encode(matrix, own)
        parts.append(coded)
    return joined(weight, parts)


def _stacked(parts: list[Coded]) -> Coded:
    found: dict[str, Any] = {"input_bits": parts[0].input_bits}
    for name in ("codes", "bits", *BESIDE):
        values = [getattr(part, name) for part in parts]
        there = values[0] is not None
        found[name] = torch.stack(values) if there else None
    return Coded(**found)


def check_bits(config: Any, least: int = 2) -> None:
    """Raise ValueError for bits or group sizes that no code has."""
    bits, size = config.bits, config.group_size
    if not least <= bits <= BYTE:
        raise ValueError(f"bits is {bits}; expected {least} to {BYTE}")
    if size < 0:
        raise ValueError(f"group_size is {size}; expected at least 1, or 0 for whole rows")


def check_input_bits(config: Any) -> None:
    """Raise ValueError for widths that inputs are not rounded to."""
    bits = config.input_bits
    if bits and not 2 <= bits <= BYTE:
        raise ValueError(f"input_bits is {bits}; expected 2 to {BYTE}, or 0")


def quantised_example(generator: torch.Generator) -> Checkpoint:
    """The mixtures of a model of one layer of width 16: three experts eight units wide, two for each token."""
    router = {"method": "top_k", "k": 2}
    mixer = {"method": "experts.layers.moe", "hidden_dim": 8, "num_experts": 3, "router": router}
    start = "layers.0.channel_mixer"
    tensors = {
        f"{start}.gate_up_proj": torch.randn(3, 16, 16, generator=generator),
        f"{start}.down_proj": torch.randn(3, 16, 8, generator=generator),
        f"{start}.router.weight": torch.randn(3, 16, generator=generator),
    }
    return Checkpoint({"num_layers": 1, "dim": 16, "channel_mixer": mixer}, tensors)


def whole_example(generator: torch.Generator) -> Checkpoint:
    """As `quantised_example`, with attention, norms and a vocabulary of 13 beside."""
    mixtures = quantised_example(generator)
    shapes = {"embed.weight": (13, 16), "head.weight": (13, 16), "layers.0.sequence_mixer.qkv.weight": (24, 16),
              "layers.0.sequence_mixer.out.weight": (16, 8)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for norm in ("layers.0.sequence_norm", "layers.0.channel_norm", "norm"):
        tensors[f"{norm}.weight"] = torch.rand(16, generator=generator) + 0.5
    return mixtures.derive(tensors={**mixtures.tensors, **tensors})
