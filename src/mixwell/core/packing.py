"""Weights in another form than a plain tensor, for inference: laid out for this CPU's GEMM, or kept as int8.

Both stand where a weight stands in `core.kernels`: `weight.linear(x)` is x [..., D] times the transpose of the weight,
and `weight[e]` is one expert of a stack. Neither takes a gradient.

Legend: M output rows, D input width, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

PACKABLE = (torch.float32, torch.bfloat16)
_FEW_ROWS = 4  # up to which a product straight from int8 beats one with the weight made wide first


def prefers_onednn(x: Tensor) -> bool:
    """Whether a product of these rows is sent to oneDNN by hand: bfloat16 goes there anyway, for one row BLAS wins."""
    return (x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > x.shape[-1]
            and torch.backends.mkldnn.is_available())


def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x times the transpose of `weight` through oneDNN; the weight may be plain, a view, or packed."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight [M, D] or a stack [E, M, D] in oneDNN's blocked layout: a second copy, made once, used many times."""

    parts: tuple[Tensor, ...]  # opaque, one for each expert
    shape: torch.Size
    source: tuple[int, int]  # address and version of the weight it was made from

    def __getitem__(self, expert: int) -> PackedWeight:
        return PackedWeight((self.parts[expert],), self.shape[1:], self.source)

    def linear(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., M]."""
        return onednn_linear(x, self.parts[0])

    def holds(self, weight: Tensor) -> bool:
        """Whether `weight` is still what was packed (a write through `.data` goes unseen)."""
        return self.source == _source(weight)


def _source(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def pack(weight: Tensor) -> PackedWeight | None:
    """Pack a weight [M, D] or [E, M, D]; None where nothing is gained by it (other devices, other types)."""
    if weight.device.type != "cpu" or weight.dtype not in PACKABLE or not torch.backends.mkldnn.is_available():
        return None
    reorder = torch.ops.mkldnn._reorder_linear_weight
    matrices = weight.detach().unbind(0) if weight.dim() == 3 else (weight.detach(),)
    return PackedWeight(tuple(reorder(m) for m in matrices), weight.shape, _source(weight))


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A weight kept as int8: values [..., M, D] times scale [..., M, 1]. The integers enter the product exactly."""

    values: Tensor  # int8
    scale: Tensor  # float32

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.values.shape

    def __getitem__(self, expert: int) -> Int8Weight:
        return Int8Weight(self.values[expert], self.scale[expert])

    def linear(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., M]; the scale is applied to the result, where it costs least."""
        scale_M = self.scale.squeeze(-1)
        if x.device.type == "cpu" and x.dtype in PACKABLE and x.numel() <= _FEW_ROWS * x.shape[-1]:
            rows = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.values, scale_M.to(x.dtype))
            return rows.view(*x.shape[:-1], -1)
        plain = self.values.to(x.dtype)
        y = onednn_linear(x, plain) if prefers_onednn(x) else nn.functional.linear(x, plain)
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
