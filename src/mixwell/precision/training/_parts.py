"""The contract of training in few bits, and what its methods share: casts with a gradient of their own.

Legend: M outputs, D inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Cast = Callable[[Tensor], Tensor]


class Product(nn.Module):
    """x W^T as a method of this family takes it: a module built as `Method(shape, config, generator)`.

    `forward(x [..., D], weight [M, D]) -> [..., M]` is differentiable in x, in the weight, which stays a float32 master
    of its owner, and in the module's own parameters, where it has some. shape: (M, D) of the weight.
    """

    learns: ClassVar[bool] = False  # whether it has parameters of its own

    def __init__(self, shape: tuple[int, int], config: Any, generator: torch.Generator) -> None:
        super().__init__()
        self.shape, self.config = tuple(shape), config

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product [..., M] of x [..., D] and the weight's transpose."""
        raise NotImplementedError


class _Cast(torch.autograd.Function):
    """What is rounded on its way forward, and how its gradient is rounded on the way back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, forth: Cast | None, back: Cast | None) -> Tensor:
        ctx.back = back
        return value.clone() if forth is None else forth(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if ctx.back is not None:
            grad = ctx.back(grad)
        return grad, None, None


def cast(value: Tensor, forth: Cast | None = None, back: Cast | None = None) -> Tensor:
    """The value rounded by `forth`; a gradient passes straight through and is rounded by `back`."""
    found: Tensor = _Cast.apply(value, forth, back)
    return found


def product(x: Tensor, weight: Tensor, inputs: Cast, weights: Cast, grads: Cast,
            results: Cast | None = None, input_grads: Cast | None = None, weight_grads: Cast | None = None) -> Tensor:
    """x W^T of rounded operands; the gradient of the result is rounded before it meets them again.

    results, input_grads, weight_grads: of what the three products give; None leaves them in float32.
    """
    moved = cast(x, inputs, input_grads)
    kept = cast(weight, weights, weight_grads)
    y = F.linear(moved, kept)
    return cast(y, results, grads)


def saturated(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest number of `dtype` in the value's own type; what is too large is its largest, with its sign."""
    most = torch.finfo(dtype).max
    kept = value.clamp(-most, most)
    narrow = kept.to(dtype)
    return narrow.to(value.dtype)


def sign(value: Tensor) -> Tensor:
    """1 where the value is 0 or more, else -1."""
    ones = torch.ones_like(value)
    return torch.where(value >= 0, ones, -ones)


def product_example(generator: torch.Generator, config: Any) -> dict[str, Any]:
    """A weight [6, 8] and two rows of five positions."""
    shape = (6, 8)
    x = torch.randn(2, 5, 8, generator=generator)
    weight = torch.randn(shape, generator=generator)
    values: dict[str, Any] = {"shape": shape, "config": config}
    values |= {"generator": generator, "x": x}
    values["weight"] = weight
    return values
