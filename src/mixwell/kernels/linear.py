"""x times the transpose of a weight: the product behind every layer, through the library that is fast for it here.

Legend: N rows, D width, M outputs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mixwell.core.rng import normal
from mixwell.kernels.adapted import AdaptedWeight, bare
from mixwell.kernels.codes import CodedWeight
from mixwell.kernels.packing import Int8Weight, PackedWeight, bias_of, weight_of
from mixwell.kernels.probe import PRODUCTS, ROWS, choices
from mixwell.kernels.products import through

Weight = Tensor | PackedWeight | Int8Weight | CodedWeight | AdaptedWeight


def _library(kind: str, like: Tensor, rows: int, numel: int) -> str:
    """The library for a product of `kind`; other types than float32 and other devices are torch's to serve."""
    if like.dtype != torch.float32 or not like.is_cpu:
        return "blas"
    return choices().library(kind, rows, numel)


def compiles(x_ND: Tensor, weight: Weight) -> bool:
    """Whether products with one expert of `weight`, or its gradients, are compiled for their number of rows."""
    if not x_ND.is_cpu:
        return False
    if x_ND.dtype == torch.bfloat16:
        return True
    numel = weight.shape[-1] * weight.shape[-2]
    libraries = {_library(kind, x_ND, ROWS[-1], numel) for kind in PRODUCTS}
    return "onednn" in libraries


def is_torchs(x_ND: Tensor, rows: int, numel: int) -> bool:
    """Whether torch's BLAS serves products of so many rows with a weight of `numel` numbers, and their gradients."""
    libraries = {_library(kind, x_ND, rows, numel) for kind in ("nt", "nn", "tn into")}
    return libraries == {"blas"}


def product_nt(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a [N, D] times the transpose of b [M, D]."""
    kind = "nt" if out is None else "nt into"
    library = _library(kind, a, a.shape[0], b.numel())
    return through(library, a, b, out)


def times(a: Tensor, weight: Weight, out: Tensor | None = None) -> Tensor:
    """a [N, D] times the transpose of a weight [M, D] in any form, without gradient."""
    if isinstance(weight, Tensor):
        return product_nt(a, weight, out)
    result = linear(a, weight) if isinstance(weight, AdaptedWeight) else weight.linear(a)
    return result if out is None else out.copy_(result)


def product_nn(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a [N, M] times b [M, D]."""
    kind = "nn" if out is None else "nn into"
    library = _library(kind, a, a.shape[0], b.numel())
    return through(library, a, b.t(), out)


def product_tn(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """The transpose of a [N, M] times b [N, D]."""
    rows, numel = a.shape[0], a.shape[1] * b.shape[1]
    library = _library("tn into", a, rows, numel)
    if library != "blas":
        b = b.contiguous()  # oneDNN would read the transpose of a strided matrix element by element
    return through(library, a.t(), b.t(), out)


def plain(weight: Weight, like: Tensor) -> Tensor:
    """A weight as a tensor that a gradient can pass through."""
    assert not isinstance(weight, (PackedWeight, AdaptedWeight))
    return weight if isinstance(weight, Tensor) else weight.dequantised(like.dtype)


def differentiates(x_ND: Tensor, *weights: Weight) -> bool:
    """Whether a gradient is asked for; raises ValueError where one is that packed weights could not carry."""
    if not torch.is_grad_enabled():
        return False
    moving = [x_ND, *(w for w in weights if isinstance(w, (Tensor, AdaptedWeight)))]
    if not any(m.requires_grad for m in moving):
        return False
    if any(isinstance(bare(w), PackedWeight) for w in weights):
        raise ValueError("packed weights carry no gradient; compute under torch.no_grad(), or with the plain weight")
    return True


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND: Tensor, weight: Tensor) -> Tensor:
        kept = x_ND if ctx.needs_input_grad[1] else None  # a frozen weight needs no input kept
        ctx.save_for_backward(kept, weight)
        return product_nt(x_ND, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x_ND, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        grad_x = product_nn(grad, weight) if needs_x else None
        grad_weight = product_tn(grad, x_ND) if needs_weight else None
        return grad_x, grad_weight


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [..., D] times the transpose of weight [M, D]: [..., M]. int8 weights are constants, packed ones for inference.

    In float32 few rows may go through another library than many, so that a row's result can differ in its last digits
    with the number of rows beside it. Raises ValueError where a gradient is asked for through packed weights.
    """
    if isinstance(weight, Tensor):
        return _plain_linear(x, weight)
    if isinstance(weight, AdaptedWeight):
        base = weight.base
        return weight.around(x, lambda mapped: linear(mapped, base))
    if differentiates(x, weight):
        moved = weight.inputs(x) if isinstance(weight, CodedWeight) else x
        return _plain_linear(moved, plain(weight, x))
    return weight.linear(x)


def _plain_linear(x: Tensor, weight: Tensor) -> Tensor:
    if x.dtype != torch.float32 or not x.is_cpu:
        return F.linear(x, weight)
    if x.dim() != 2:
        rows_ND = x.reshape(-1, x.shape[-1])
        return _plain_linear(rows_ND, weight).view(*x.shape[:-1], weight.shape[0])
    if not torch.is_grad_enabled():
        return product_nt(x, weight)
    if is_torchs(x, x.shape[0], weight.numel()):
        return F.linear(x, weight)
    return _Linear.apply(x, weight)


class Linear(nn.Module):
    """x W^T + b with weights of normal draws, std 0.02, and a bias that starts at 0."""

    packable: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, inputs: int, outputs: int, bias: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal((outputs, inputs), 0.02, generator))
        self.bias = nn.Parameter(self.weight.new_zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        y = linear(x, weight_of(self, "weight"))
        bias = bias_of(self)
        return y if bias is None else y + bias
