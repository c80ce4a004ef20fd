"""The RMS norm, in float32 and in blocks that stay in cache, and its kin: norms around 1, norms of layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Kind = Literal["rms", "rms_plus_one", "layer", "layer_bias"]  # RMS; RMS with 1 + weight; layer norm without, with bias

_HALF = torch.bfloat16, torch.float16
_BLOCK = 1 << 17  # numbers handled at a time: half a megabyte in float32


def wide(x: Tensor) -> Tensor:
    """float32 for half-width types; float32 and float64 stay as they are."""
    return x.float() if x.dtype in _HALF else x


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that `wide` gives: float32 for half-width types."""
    return torch.float32 if dtype in _HALF else dtype


def row_blocks(rows: int, width: int) -> Iterator[slice]:
    """Blocks of rows small enough that several passes over one, in float32, stay in the second-level cache."""
    size = max(1, _BLOCK // max(width, 1))
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _normed(x: Tensor, weight: Tensor, eps: float, into: Tensor) -> Tensor:
    """Write the norm of a block; returns the scale of each row. Computed in float32 or better."""
    f = wide(x)
    length = torch.linalg.vector_norm(f, dim=-1, keepdim=True)
    mean_square = length.square_().div_(f.shape[-1])
    scale = mean_square.add_(eps).rsqrt_()
    if into.dtype == f.dtype == weight.dtype:
        torch.mul(f, scale, out=into).mul_(weight)
    else:
        into.copy_((f * scale).mul_(weight))
    return scale


class _RMSNorm(torch.autograd.Function):
    """Keeps the input and one number a row; sums in float32 or better, block by block."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        y_ND = torch.empty_like(x_ND)
        computed = wide_dtype(x.dtype)
        scale_N1 = weight.new_empty(x_ND.shape[0], 1, dtype=computed)
        for rows in row_blocks(*x_ND.shape):
            scale_N1[rows] = _normed(x_ND[rows], weight, eps, y_ND[rows])
        ctx.save_for_backward(x_ND, weight, scale_N1)
        return y_ND.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x_ND, weight, scale_N1 = ctx.saved_tensors
        grad_ND = grad.reshape(x_ND.shape)
        grad_x = torch.empty_like(x_ND)
        grad_weight = torch.zeros_like(weight, dtype=scale_N1.dtype)
        for rows in row_blocks(*x_ND.shape):
            scale = scale_N1[rows]
            unit = wide(x_ND[rows]) * scale
            slopes = wide(grad_ND[rows])
            product = slopes * unit
            grad_weight += product.sum(0)
            along = torch.mv(product, weight.to(product.dtype))
            along = along.div_(x_ND.shape[1]).unsqueeze(1)
            beside = (slopes * weight).sub_(unit.mul_(along))
            grad_x[rows] = beside.mul_(scale)
        return grad_x.view(grad.shape), grad_weight.to(weight.dtype), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in x's type (Zhang and Sennrich 2019)."""
    if not torch.is_grad_enabled() and x.numel() <= _BLOCK:
        y = torch.empty_like(x)
        _normed(x, weight, eps, y)
        return y
    return _RMSNorm.apply(x, weight, eps)


class RMSNorm(nn.Module):
    """`rms_norm` with its weight, which stays float32 whatever the model computes in; `offset` is added to it."""

    keep_float32: ClassVar[bool] = True

    def __init__(self, dim: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.eps = eps
        self.offset = offset
        self.weight = nn.Parameter(torch.ones(dim) - offset if offset else torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        weight = self.weight + self.offset if self.offset else self.weight
        return rms_norm(x, weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, in float32 or better.

    Ba et al. 2016 (1607.06450).
    """

    keep_float32: ClassVar[bool] = True

    def __init__(self, dim: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        shape = self.weight.shape
        y = F.layer_norm(wide(x), shape, self.weight, self.bias, self.eps)
        return y.to(x.dtype)


def build_norm(kind: Kind, dim: int, eps: float) -> nn.Module:
    """A norm of `kind` over `dim` numbers."""
    if kind == "rms":
        return RMSNorm(dim, eps)
    if kind == "rms_plus_one":
        return RMSNorm(dim, eps, offset=1.0)
    return LayerNorm(dim, eps, bias=kind == "layer_bias")
