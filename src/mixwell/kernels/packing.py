"""Weights in another form than a plain tensor, for inference: laid out for this CPU's GEMM, or kept as int8.

Both stand where a weight stands in `core.kernels`: `weight.linear(x)` is x [..., D] times the transpose of the weight,
and `weight[e]` is one expert of a stack. Neither takes a gradient.

Legend: M output rows, D input width, E experts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PACKABLE = (torch.float32, torch.bfloat16)
_INT8_STEP = 64  # torch's int8 product reads past the end (and crashes) where the width is no multiple of its vector
_FEW_ROWS = 4  # up to which a product straight from int8 beats one with the weight made wide first
_LEAST_WORK = 1 << 22  # multiply-adds of a float32 product from which on oneDNN gains


def prefers_onednn(x: Tensor, outputs: int) -> bool:
    """Whether x [..., D] times [D, outputs] is sent to oneDNN by hand: on a CPU, in float32, where it is large enough.

    Below some four million multiply-adds the call itself, and the compiling for each new shape, cost more than the
    slower BLAS. bfloat16 goes to oneDNN anyway.
    """
    return (x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() * outputs >= _LEAST_WORK
            and torch.backends.mkldnn.is_available())


def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x times the transpose of `weight` through oneDNN; the weight may be plain, a view, or packed."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A copy of a weight [M, D] or of a stack [E, M, D] in oneDNN's blocked layout, made once and used many times."""

    parts: tuple[Tensor, ...]  # opaque, one for each expert
    shape: torch.Size
    source: weakref.ref[Tensor]  # what was packed
    state: tuple[int, int]  # its address and version at that time

    def __getitem__(self, expert: int) -> PackedWeight:
        return PackedWeight((self.parts[expert],), self.shape[1:], self.source, self.state)

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()  # copies and pickles of a layer come without: opaque tensors have no storage to copy

    def linear(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., M]."""
        return onednn_linear(x, self.parts[0])

    def holds(self, weight: Tensor) -> bool:
        """Whether `weight` is what was packed, unchanged since (a write through `.data` goes unseen)."""
        return self.source() is weight and self.state == _state(weight)


def _nothing() -> None:
    return None


def _state(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def pack(weight: Tensor) -> PackedWeight | None:
    """Pack a weight [M, D] or [E, M, D]; None where nothing is gained by it (other devices, other types)."""
    if weight.device.type != "cpu" or weight.dtype not in PACKABLE or not torch.backends.mkldnn.is_available():
        return None
    matrices = weight.detach().unbind(0) if weight.dim() == 3 else (weight.detach(),)
    parts = tuple(torch.ops.mkldnn._reorder_linear_weight(matrix) for matrix in matrices)
    return PackedWeight(parts, weight.shape, weakref.ref(weight), _state(weight))


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
        scale_M, width = self.scale.squeeze(-1), x.shape[-1]
        if (x.device.type == "cpu" and x.dtype in PACKABLE and x.numel() <= _FEW_ROWS * width
                and width % _INT8_STEP == 0):
            rows = torch._weight_int8pack_mm(x.reshape(-1, width), self.values, scale_M.to(x.dtype))
            return rows.view(*x.shape[:-1], -1)
        plain = self.values.to(x.dtype)
        y = onednn_linear(x, plain) if prefers_onednn(x, plain.shape[0]) else nn.functional.linear(x, plain)
        return (y * scale_M.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)


def prepack(module: nn.Module) -> int:
    """Pack every weight that the layers in `module` declare in `packable`; returns the bytes this takes in addition.

    The copies serve while gradients are off; a weight that has changed since is used as it is until `prepack` is
    called again.
    """
    extra = 0
    for layer in module.modules():
        packed = {name: pack(getattr(layer, name)) for name in getattr(layer, "packable", ())
                  if isinstance(getattr(layer, name, None), Tensor)}
        layer.__dict__["packed_weights"] = {name: weight for name, weight in packed.items() if weight is not None}
        extra += sum(getattr(layer, name).nbytes for name in layer.__dict__["packed_weights"])
    return extra


def weight_of(layer: nn.Module, name: str) -> Tensor | PackedWeight | Int8Weight:
    """The weight `name` of `layer` in the form to compute with: int8 with its scale, packed where that holds, plain."""
    weight: Tensor = getattr(layer, name)
    if weight.dtype == torch.int8:
        return Int8Weight(weight, getattr(layer, f"{name}_scale"))
    packed: PackedWeight | None = layer.__dict__.get("packed_weights", {}).get(name)
    if packed is None or torch.is_grad_enabled() or not packed.holds(weight):
        return weight
    return packed
