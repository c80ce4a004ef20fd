"""Weights in another form than a plain tensor, for inference: laid out for this CPU's libraries, or kept as int8.

Both stand where a weight stands in `mixwell.kernels`: `weight.linear(x)` is x [..., D] times the transpose of the
weight, and `weight[e]` is one expert of a stack. Neither takes a gradient.

Legend: M output rows, D input width, E experts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.kernels.adapted import AdaptedWeight, Change
from mixwell.kernels.codes import PARTS, CodedWeight, coded
from mixwell.kernels.memory import free_bytes
from mixwell.kernels.probe import choices, row_class
from mixwell.kernels.products import PACKED, PLAIN, Product, fits_fp16, works

PACKABLE = (torch.float32, torch.bfloat16)
# tokens written one by one until what they gain is the time that packing took, and bytes a number of the copies at
# most; measured on a mixture of 224 million parameters, whose float32 weights held bfloat16's digits
PAYS_AFTER = {torch.float32: 1024, torch.bfloat16: 128}
_COPIES = {torch.float32: 6, torch.bfloat16: 2}
CODED = "coded_layouts"  # of a layer: where the codes of its weights lie, by the weights' names
CHANGES = "adapters"  # child of a layer: the changes beside its weights, by the weights' names
_INT8_STEP = 64  # torch's int8 product reads past the end (and crashes) where the width is no multiple of its vector


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight [M, D] or a stack [E, M, D] in the layouts that are fastest here, made once and used many times."""

    parts: tuple[tuple[tuple[Product, Any], ...], ...]  # of each expert, by class of rows: product, and weight for it
    shape: torch.Size
    nbytes: int  # of the copies
    source: weakref.ref[Tensor]  # what was packed
    state: tuple[int, int]  # its address and version at that time

    def __getitem__(self, expert: int) -> PackedWeight:
        parts = self.parts[expert]
        shape = self.shape[1:]
        return PackedWeight((parts,), shape, 0, self.source, self.state)

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()  # copies and pickles of a layer come without: opaque tensors have no storage to copy

    def linear(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., M]."""
        if x.dim() != 2:
            y_NM = self.linear(x.reshape(-1, x.shape[-1]))
            shape = x.shape[:-1]
            return y_NM.view(*shape, self.shape[-2])
        (by_class,) = self.parts
        product, weight = by_class[row_class(x.shape[0])]
        return product(x, weight)

    def holds(self, weight: Tensor) -> bool:
        """Whether `weight` is what was packed, unchanged since (a write through `.data` goes unseen)."""
        same = self.source() is weight
        return same and self.state == _state(weight)


def _nothing() -> None:
    return None


def _state(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def pack(weight: Tensor) -> PackedWeight | None:
    """Pack a weight [M, D] or [E, M, D]; None where nothing is gained by it here (other devices, other types).

    What float16 can hold as well, such as weights from a bfloat16 checkpoint, may be packed in it.
    """
    if not weight.is_cpu or weight.dtype not in PACKABLE:
        return None
    plain = weight.detach()
    forms = _forms(plain)
    made = set(forms) & set(PACKED)
    if not made:
        return None
    matrices = plain.unbind(0) if plain.dim() == 3 else (plain,)
    parts = tuple(_packed(matrix, forms) for matrix in matrices)
    nbytes = sum(_nbytes(form, plain) for form in made)
    source = weakref.ref(weight)
    return PackedWeight(parts, weight.shape, nbytes, source, _state(weight))


def _nbytes(form: str, weight: Tensor) -> int:
    return weight.numel() * 2 if form == "fp16" else weight.nbytes


def _forms(weight: Tensor) -> tuple[str, ...]:
    """The form to compute with by class of rows."""
    found = choices()
    if weight.dtype == torch.float32:
        halved = "fp16" in found.half and fits_fp16(weight)
        return found.half if halved else found.exact
    working = (form for form in PACKED if works(form, weight.dtype))
    form = next(working, "blas")
    return (form,) * len(found.exact)


def _packed(matrix: Tensor, forms: Sequence[str]) -> tuple[tuple[Product, Any], ...]:
    """Product and weight by class of rows; equal forms share one copy."""
    made: dict[str, tuple[Product, Any]] = {}
    for form in set(forms):
        if form in PLAIN:
            made[form] = PLAIN[form], matrix
        else:
            product, convert = PACKED[form]
            made[form] = product, convert(matrix)
    return tuple(made[form] for form in forms)


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A weight kept as int8: values [..., M, D] times scale [..., M, 1]. The integers enter the product exactly."""

    values: Tensor  # int8
    scale: Tensor  # float32

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.values.shape

    def __getitem__(self, expert: int | None) -> Int8Weight:
        return Int8Weight(self.values[expert], self.scale[expert])

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight as a plain tensor."""
        return (self.values * self.scale).to(dtype)

    def linear(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., M]; the scale is applied to the result, where it costs least."""
        scale_M = self.scale.squeeze(-1)
        if _straight(x):
            rows_ND = x.reshape(-1, x.shape[-1])
            y_NM = torch._weight_int8pack_mm(rows_ND, self.values, scale_M.to(x.dtype))
            return y_NM.view(*x.shape[:-1], -1)
        values = self.values.to(x.dtype)
        y = nn.functional.linear(x, values)
        summed = torch.promote_types(x.dtype, torch.float32)
        scaled = y * scale_M.to(summed)
        return scaled.to(x.dtype)


def _straight(x: Tensor) -> bool:
    """Whether the rows of `x` are few enough to be multiplied with int8 numbers as they are."""
    width = x.shape[-1]
    served = x.is_cpu and x.dtype in PACKABLE
    if not served or width % _INT8_STEP:
        return False
    most = choices().int8_rows.get(x.dtype, 0)
    return x.numel() <= most * width


def prepack(module: nn.Module) -> int:
    """Pack every weight that the layers in `module` declare in `packable`; returns the bytes this takes in addition.

    The copies serve while gradients are off; a weight that has changed since is used as it is until `prepack` is
    called again.
    """
    extra = 0
    for layer, names in _packable(module):
        extra += pack_layer(layer, names)
    return extra


def _packable(module: nn.Module) -> Iterator[tuple[nn.Module, Sequence[str]]]:
    """The layers in `module` with the names of their weights that can be packed."""
    for layer in module.modules():
        yield layer, getattr(layer, "packable", ())


def prepack_where_it_pays(module: nn.Module, tokens: int) -> int:
    """`prepack` for writing so many `tokens` one by one; returns the bytes this takes, 0 where nothing was packed.

    Nothing is where so few tokens take less time than packing does, and where the copies would take more than half of
    the memory that is free. int8 weights stay as they are, for the memory that they save.
    """
    named = [getattr(layer, name, None) for layer, names in _packable(module) for name in names]
    weights = [w for w in named if w is not None and w.dtype in PACKABLE]
    if not all(tokens >= PAYS_AFTER[w.dtype] for w in weights):
        return 0
    needed_bytes = sum(w.numel() * _COPIES[w.dtype] for w in weights)
    fits = needed_bytes <= free_bytes() // 2
    return prepack(module) if fits else 0


def pack_layer(layer: nn.Module, names: Sequence[str]) -> int:
    """Pack those of the weights named that the layer has, for `weight_of`; returns the bytes this takes."""
    packed: dict[str, PackedWeight] = {}
    for name in names:
        weight = getattr(layer, name, None)
        found = pack(weight) if isinstance(weight, Tensor) else None
        if found is not None:
            packed[name] = found
    layer.__dict__["packed_weights"] = packed
    return sum(weight.nbytes for weight in packed.values())


def weight_of(layer: nn.Module, name: str) -> Tensor | PackedWeight | Int8Weight | CodedWeight | AdaptedWeight:
    """The weight `name` of `layer` in the form to compute with: codes or int8 with their scale, packed or plain.

    A change that was put beside it comes with it.
    """
    own = _own(layer, name)
    base = _served(layer, name, own)
    change = _change(layer, name)
    return base if change is None else AdaptedWeight(base, own, change)


def bias_of(layer: nn.Module, weight: str = "weight", bias: str = "bias") -> Tensor | None:
    """The bias that is added to the product with the weight named, changed where the weight's change says so."""
    own: Tensor | None = getattr(layer, bias)
    change = None if own is None else _change(layer, weight)
    if own is None or change is None:
        return own
    return change.bias(own, _own(layer, weight))


def _change(layer: nn.Module, name: str) -> Change | None:
    """What was put beside a weight."""
    changes: Any = layer._modules.get(CHANGES)
    if changes is None or name not in changes:
        return None
    found: Change = changes[name].bound()
    return found


def _own(layer: nn.Module, name: str) -> Tensor | Int8Weight | CodedWeight:
    weight: Tensor = getattr(layer, name)
    if weight.dtype == torch.uint8:
        return _coded(layer, name, weight)
    if weight.dtype != torch.int8:
        return weight
    return Int8Weight(weight, getattr(layer, f"{name}_scale"))


def _coded(layer: nn.Module, name: str, codes: Tensor) -> CodedWeight:
    """A coded weight; where its rows lie is found once."""
    known: dict[str, CodedWeight] = layer.__dict__.setdefault(CODED, {})
    found = known.get(name)
    scale = layer._buffers[f"{name}_scale"]  # another tensor once the layer was moved
    if found is not None and found.codes is codes and found.scale is scale:
        return found
    parts: dict[str, Tensor] = {}
    for part in PARTS:
        value = layer._buffers.get(f"{name}_{part}")
        if value is not None:
            parts[part] = value
    known[name] = made = coded(codes, parts)
    return made


def _served(layer: nn.Module, name: str, own: Tensor | Int8Weight | CodedWeight,
            ) -> Tensor | PackedWeight | Int8Weight | CodedWeight:
    """The packed copy where one holds and no gradient is asked for."""
    held = layer.__dict__.get("packed_weights", {})
    packed: PackedWeight | None = held.get(name)
    if packed is None or not isinstance(own, Tensor) or torch.is_grad_enabled():
        return own
    return packed if packed.holds(own) else own
