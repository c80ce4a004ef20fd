"""Convolutions as chains of one-axis filters, separable before they are trained.

**Equation:** W[o, c, i_1, ..., i_d] = a[o, c] prod_k f_k[o, i_k]: a convolution of one place that mixes channels, then
    for each axis one of each channel by itself along that axis; no bias and nothing between them.
**Shapes:** images [B, C, ...] with d axes, d = 1 to 3; a (weight) [O, C]; f_k (filters) [O, k]; as a matrix [O, I], I =
    C times the kernel's places, in the order of `torch.nn.functional.unfold`.
**Reference:** Boukraichi et al. 2023, A priori compression of convolutional neural networks for wave simulators.
**Differs:** of the paper the abstract alone was read: that kernels of two or three axes give way to filters of one axis
    before training; the chain's order and start are those of flattened convolutions. W starts with the variance asked
    for, each filter with 1 / k.
**Fails when:** the kernel that is needed is a sum of several products, as a Laplacian's is.
**Cost:** O (C + sum of k) numbers, and as many multiply-adds a place, against O C prod k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.kernels.linear import linear
from mixwell.mixing import Structured, normal_parameter
from mixwell.precision.structured._parts import structured_example

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}  # by the number of axes


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of chains of filters."""

    kernel: tuple[int, ...] = (3, 3)  # k of each axis, one to three of them

    def __post_init__(self) -> None:
        axes = len(self.kernel)
        if axes not in CONVOLUTIONS or min(self.kernel) < 1:
            raise ValueError(f"kernel is {self.kernel}; expected one to three sizes of at least 1")


@method(
    title="Convolutions as chains of one-axis filters",
    paper="A priori compression of convolutional neural networks for wave simulators",
    year=2023,
)
class KernelChain(Structured):
    """A separable convolution; see the module's card."""

    config: Config

    def __init__(self, rows: int, columns: int, config: Config, generator: torch.Generator | None = None,
                 std: float | None = None) -> None:
        super().__init__(rows, columns, config)
        area = math.prod(config.kernel)
        if columns % area:
            raise ValueError(f"a kernel of {config.kernel} takes inputs that are a multiple of {area}; got {columns}")
        channels = columns // area
        entry = self.own_std(std) * area**0.5
        self.weight = normal_parameter((rows, channels), generator, entry)
        self.filters = nn.ParameterList()
        for size in config.kernel:
            own = normal_parameter((rows, size), generator, size**-0.5)
            self.filters.append(own)

    def kernel(self) -> Tensor:
        """W with its axes apart [O, C, k, ...]."""
        whole = self.weight
        for one in self.filters:
            axes = whole.ndim - 1
            along = one.view(self.rows, *[1] * axes, -1)
            whole = whole.unsqueeze(-1) * along
        return whole

    def dense(self) -> Tensor:
        """W [O, I]."""
        return self.kernel().flatten(1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Patch by patch: [..., I] -> [..., O]."""
        return linear(x, self.dense())

    def convolve(self, images: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        """The chain over images [B, C, ...] -> [B, O, ...], stride and padding the same along every axis."""
        axes = len(self.config.kernel)
        convolution = CONVOLUTIONS[axes]
        mixing = self.weight.view(self.rows, -1, *[1] * axes)
        found = convolution(images, mixing)
        for axis, one in enumerate(self.filters):
            size = _along(axis, axes, -1, 1)
            step = _along(axis, axes, stride, 1)
            margin = _along(axis, axes, padding, 0)
            own = one.view(self.rows, 1, *size)
            found = convolution(found, own, stride=step, padding=margin, groups=self.rows)
        return found

    def flops_per_token(self) -> float:
        """2 O I of one patch by itself."""
        return 2.0 * self.rows * self.columns

    def flops_per_place(self) -> float:
        """2 O (C + sum of k) of one place of `convolve`, at stride 1."""
        sizes = [factor.numel() for factor in self.parameters()]
        return 2.0 * sum(sizes)


def _along(axis: int, axes: int, value: int, other: int) -> list[int]:
    """A number for one axis, and another for the others."""
    return [value if one == axis else other for one in range(axes)]


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight filters over three channels of two by two."""
    return structured_example(generator, Config(kernel=(2, 2)))
