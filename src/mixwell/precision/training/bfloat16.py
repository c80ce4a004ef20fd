"""Training in bfloat16, emulated on float32: rounded operands, float32 sums, float32 master weights.

**Equation:** u the bits of a float32: where its exponent is not 255, u <- u + 0x7FFF + ((u >> 16) & 1); then the low
    sixteen bits are cut ("nearest", ties to even), or cut alone ("truncate"). y = r(r(x) r(W)^T) with sums in float32;
    dx = r(r(dy) r(W)), dW = r(r(dy)^T r(x)); W stays float32.
**Shapes:** x [..., D], W [M, D] -> y [..., M].
**Reference:** Kalamkar et al. 2019 (1905.12322), sections 3 and 4; the recipe's rounding as in Intel's emulation
    library of the same group.
**Differs:** rounding "float16" stands beside for comparison, without the loss scaling that it needs. A NaN stays one
    whatever its payload. Optimiser and softmax are the caller's, in float32.
**Fails when:** weights have no float32 masters: steps below a 256th of a weight are lost.
**Cost:** that of float32 and five passes: it shows what bfloat16 does to numbers, not how fast it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_one_of
from mixwell.precision.training._parts import Product, product, product_example

ROUNDINGS = ("nearest", "truncate", "float16")
_HIGH, _HALF = -(2**16), 2**15 - 1  # masks of the upper half, and what is added before the lower is cut
_EXPONENT, _QUIET = 0x7F800000, 0x00400000


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the emulation."""

    rounding: Literal["nearest", "truncate", "float16"] = "nearest"  # of float32 to sixteen bits

    def __post_init__(self) -> None:
        check_one_of(self, rounding=ROUNDINGS)


def rounded(value: Tensor, rounding: str = "nearest") -> Tensor:
    """Float32 numbers that have sixteen bits, as float32; float16's overflow to infinity as IEEE says."""
    if rounding == "float16":
        half = value.to(torch.float16)
        return half.to(value.dtype)
    wide = value.float().contiguous()
    bits = wide.view(torch.int32)
    moved = bits
    if rounding == "nearest":
        odd = (bits >> 16) & 1
        moved = bits + odd + _HALF
    special = (bits & _EXPONENT) == _EXPONENT
    kept = torch.where(special, bits, moved)
    quiet = kept | _QUIET  # of a NaN, whose payload in the lower half alone would turn infinite
    sound = torch.where(value.isnan(), quiet, kept)
    cut = sound & _HIGH
    found = cut.view(torch.float32)
    return found.to(value.dtype)


@method(title="Training in bfloat16, emulated", paper="A Study of BFLOAT16 for Deep Learning Training", year=2019)
class Bfloat16(Product):
    """A linear map's product in sixteen bits; see the module's card."""

    config: Config

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[..., D] -> [..., M]."""
        r = partial(rounded, rounding=self.config.rounding)
        return product(x, weight, r, r, r, results=r, input_grads=r, weight_grads=r)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A small weight and its inputs."""
    return product_example(generator, Config())
