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
from mixwell.kernels.packing import Int8Weight, PackedWeight, weight_of
from mixwell.kernels.probe import KINDS, ROWS, choices
from mixwell.kernels.products import through

Weight = Tensor | PackedWeight | Int8Weight


def _library(kind: str, like: Tensor, rows: int, numel: int) -> str:
    """The library for a product of `kind`; other types than float32 and other devices are torch's to serve."""
    if like.dtype != torch.float32 or like.device.type != "cpu":
        return "blas"
    return choices().library(kind, rows, numel)


def compiles(x_ND: Tensor, weight: Weight) -> bool:
    """Whether products with one expert of `weight`, or its gradients, are compiled for their number of rows."""
    if x_ND.device.type != "cpu" or x_ND.dtype not in (torch.float32, torch.bfloat16):
        return False
    numel = weight.shape[-1] * weight.shape[-2]
    return x_ND.dtype == torch.bfloat16 or any(_library(kind, x_ND, ROWS[-1], numel) == "onednn" for kind in KINDS)


def product_nt(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a [N, D] times the transpose of b [M, D]."""
    kind = "nt" if out is None else "nt into"
    return through(_library(kind, a, a.shape[0], b.numel()), a, b, out)


def times(a: Tensor, weight: Weight, out: Tensor | None = None) -> Tensor:
    """a [N, D] times the transpose of a weight [M, D] in any form, without gradient."""
    if isinstance(weight, Tensor):
        return product_nt(a, weight, out)
    result = weight.linear(a)
    return result if out is None else out.copy_(result)


def product_nn(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a [N, M] times b [M, D]."""
    kind = "nn" if out is None else "nn into"
    return through(_library(kind, a, a.shape[0], b.numel()), a, b.t(), out)


def product_tn(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """The transpose of a [N, M] times b [N, D]."""
    library = _library("tn into", a, a.shape[0], a.shape[1] * b.shape[1])
    # without the copy, oneDNN would read the transpose of a strided matrix element by element
    return through(library, a.t(), (b if library == "blas" else b.contiguous()).t(), out)


def plain(weight: Weight, like: Tensor) -> Tensor:
    """A weight as a tensor that a gradient can pass through."""
    assert not isinstance(weight, PackedWeight)
    return weight if isinstance(weight, Tensor) else weight.dequantised(like.dtype)


def differentiates(x_ND: Tensor, *weights: Weight) -> bool:
    """Whether a gradient is asked for; raises where one is that packed weights could not carry."""
    wanted = torch.is_grad_enabled() and (
        x_ND.requires_grad or any(isinstance(w, Tensor) and w.requires_grad for w in weights))
    if wanted and any(isinstance(w, PackedWeight) for w in weights):
        raise ValueError("packed weights carry no gradient; compute under torch.no_grad(), or with the plain weight")
    return wanted


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight)
        return product_nt(x_ND, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x_ND, weight = ctx.saved_tensors
        return (product_nn(grad, weight) if ctx.needs_input_grad[0] else None,
                product_tn(grad, x_ND) if ctx.needs_input_grad[1] else None)


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [..., D] times the transpose of weight [M, D]: [..., M]. int8 weights are constants, packed ones for inference.

    In float32 few rows may go through another library than many, so that a row's result can differ in its last digits
    with the number of rows beside it.
    """
    if not isinstance(weight, Tensor):
        if not differentiates(x, weight):
            return weight.linear(x)
        weight = plain(weight, x)
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return F.linear(x, weight)
    if x.dim() != 2:
        return linear(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[0])
    if not torch.is_grad_enabled():
        return product_nt(x, weight)
    libraries = {_library(kind, x, x.shape[0], weight.numel()) for kind in ("nt", "nn", "tn into")}
    return F.linear(x, weight) if libraries == {"blas"} else _Linear.apply(x, weight)


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
        return y if self.bias is None else y + self.bias
