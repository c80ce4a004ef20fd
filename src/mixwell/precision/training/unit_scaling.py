"""Munit scaling: weights of variance one and fixed multipliers, so that eight-bit floats need no scales.

**Equation:** y = a e4m3(x) e4m3(W)^T, W ~ N(0, 1), a = 1 / sqrt(D) in hidden layers and 1 / D at the head, the same a
    backward; dy to E5M2; what is too large is cut, nothing else is scaled. Residual: h' = sqrt(1 - tau) h +
    sqrt(tau) LN(f(h)), the norm at the end of the branch and none at its start. Width d: the learning rate of hidden
    layers times sqrt(d_base / d), that of embedding, norms and head as it is; weight decay apart from the rate.
**Shapes:** x [..., D], W [M, D] -> y [..., M]; h [..., D].
**Reference:** Narayan et al. 2025 (2502.05967), section 3.
**Differs:** none in the product; emulated: numbers are those of eight bits, products are taken in float32. The paper's
    optimiser is Lion; any will do here.
**Fails when:** weights are not of variance one: what starts at 0.02 falls into E4M3's lowest numbers, and gradients of
    a mean over many tokens into E5M2's.
**Cost:** two casts an operand and one multiplication: no pass over a tensor for its maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.mixing import check_one_of
from mixwell.precision.training._parts import Product, cast, product_example, saturated

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of munit scaling."""

    place: Literal["hidden", "head"] = "hidden"  # of the layer: the root of its fan-in divides, or all of it
    eight_bits: bool = True  # cast operands and gradients; without it the same function in float32

    def __post_init__(self) -> None:
        check_one_of(self, place=("hidden", "head"))


def multiplier(inputs: int, place: str = "hidden") -> float:
    """a of a layer with so many inputs."""
    if place == "head":
        return 1 / inputs
    return inputs**-0.5


def unit_weight(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A weight [M, D] as it starts: normal with variance one."""
    return torch.randn(shape, generator=generator)


def residual(h: Tensor, branch: Tensor, tau: float) -> Tensor:
    """The stream behind a branch f(h) [..., D]: both keep variance one. Raises ValueError for a tau not in 0 to 1."""
    if not 0 <= tau <= 1:
        raise ValueError(f"tau is {tau}; expected 0 to 1")
    width = branch.shape[-1:]
    normed = F.layer_norm(branch, width)
    stays = math.sqrt(1 - tau) * h
    return stays + math.sqrt(tau) * normed


def hidden_rate(lr: float, base_width: int, width: int) -> float:
    """The learning rate of hidden layers of `width`, from the one that is right at `base_width`."""
    return lr * (base_width / width) ** 0.5


@method(title="Unit-variance weights for eight-bit floats without scales",
        paper="μnit Scaling: Simple and Scalable FP8 LLM Training", year=2025)
class UnitScaling(Product):
    """A linear map's product with a fixed multiplier; see the module's card."""

    config: Config

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[..., D] -> [..., M]."""
        inputs = weight.shape[-1]
        a = multiplier(inputs, self.config.place)
        if not self.config.eight_bits:
            return F.linear(x, weight) * a
        narrow = partial(saturated, dtype=E4M3)
        moved, kept = cast(x, narrow), cast(weight, narrow)
        whole = F.linear(moved, kept)
        wide = partial(saturated, dtype=E5M2)
        return cast(whole * a, None, wide)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A small weight and its inputs."""
    return product_example(generator, Config())
