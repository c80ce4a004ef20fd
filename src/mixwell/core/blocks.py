"""The two small modules that several rooms build from: a linear map and the RMS norm."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mixwell.core.kernels import linear
from mixwell.core.packing import weight_of


def wide(x: Tensor) -> Tensor:
    """float32 for half-width types; float32 and float64 stay as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class _RMSNorm(torch.autograd.Function):
    """Keeps the input and one number a row; sums in float32 or better."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        f = wide(x)
        mean_square = torch.linalg.vector_norm(f, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (f * scale).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, scale = ctx.saved_tensors
        unit, grad = wide(x) * scale, wide(grad)
        product = grad * unit
        grad_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        along = torch.mv(product.flatten(0, -2), weight.to(product.dtype)).div_(x.shape[-1]).view(scale.shape)
        grad_x = (grad * weight).sub_(unit.mul_(along)).mul_(scale)
        return grad_x.to(x.dtype), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in x's type (Zhang and Sennrich 2019)."""
    return _RMSNorm.apply(x, weight, eps)


class RMSNorm(nn.Module):
    """`rms_norm` with its weight, which stays float32 whatever the model computes in."""

    keep_float32: ClassVar[bool] = True

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return rms_norm(x, self.weight, self.eps)


class Linear(nn.Module):
    """x W^T + b with weights of normal draws, std 0.02, and a bias that starts at 0."""

    packable: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, inputs: int, outputs: int, bias: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        device = None if generator is None else generator.device
        self.weight = nn.Parameter(torch.randn(outputs, inputs, generator=generator, device=device) * 0.02)
        self.bias = nn.Parameter(torch.zeros(outputs, device=device)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        y = linear(x, weight_of(self, "weight"))
        return y if self.bias is None else y + self.bias
