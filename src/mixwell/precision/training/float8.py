"""FP8-LM: products, gradients and Adam's moments in eight-bit floats, each tensor with a scale of its own.

**Equation:** s = 2^floor(log2(F / max |t|)), q = f(s t), t' = q / s, with f to E4M3 (F = 448) or E5M2 (F = 57344).
    y = x' W'^T with x and W in E4M3; dy in E5M2; dx = dy' W'; dW = dy'^T x', then E4M3.
    AdamW: first moment E4M3, second moment and master weight float16, each with a scale; a step makes them float32,
    moves them and rounds them again. A sum over processes: one scale for all from the largest maximum, divided by the
    square root of their number; gradients are divided by the number first and added in E4M3.
**Shapes:** x [..., D], W [M, D] -> y [..., M]; moments as the weights.
**Reference:** Peng et al. 2023 (2310.18313), section 2; the authors' MS-AMP (its casts and its AdamW).
**Differs:** scales come from the tensor at hand, where the release keeps a window of 16 maxima for inputs and output
    gradients after its first 16 calls; the paper's factor mu, which follows the share of saturated values, is left out.
    Emulated: numbers are those of eight bits, products are taken in float32.
**Fails when:** `scaled` is off and gradients are below 2^-10 or so: E4M3 turns them 0; a second moment in E4M3, which
    squares fall out of (`second` "float8" is there to show it).
**Cost:** 6 bytes a parameter (1 gradient, 1 and 2 moments, 2 master) for 16 of float32's and bfloat16's mixture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_one_of
from mixwell.precision.training._parts import Product, product, product_example, saturated

E4M3, E5M2, HALF = torch.float8_e4m3fn, torch.float8_e5m2, torch.float16


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of FP8-LM."""

    scaled: bool = True  # a scale for each tensor; without it numbers are cast as they are
    second: Literal["float16", "float8"] = "float16"  # how Adam's second moment is kept

    def __post_init__(self) -> None:
        check_one_of(self, second=("float16", "float8"))


def scale_of(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The power of two that brings the largest magnitude under `dtype`'s; 1 for one empty, of zeros or not finite."""
    if not value.numel():  # the rows of an expert that nobody chose
        return torch.ones((), device=value.device)
    largest = value.abs().max()
    most = torch.finfo(dtype).max
    room = most / largest.float()
    power = room.log2().floor()
    scale = power.clamp(-126, 126).exp2()
    sound = largest.isfinite() & (largest > 0)
    one = torch.ones_like(scale)
    return torch.where(sound, scale, one)


class Stored(NamedTuple):
    """A tensor as it is kept: numbers of few bits and their scale."""

    numbers: Tensor
    scale: Tensor  # float32 []

    def plain(self) -> Tensor:
        """The numbers that it stands for, float32."""
        return self.numbers.float() / self.scale

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers."""
        width = self.numbers.element_size()
        return self.numbers.numel() * width


def stored(value: Tensor, dtype: torch.dtype, scaled: bool = True, scale: Tensor | None = None) -> Stored:
    """A tensor in `dtype`, by its own scale unless one is given; what is too large saturates."""
    ones = torch.ones((), device=value.device)
    if scale is None:
        scale = scale_of(value, dtype) if scaled else ones
    moved = value.float() * scale
    kept = saturated(moved, dtype)
    numbers = kept.to(dtype)
    return Stored(numbers, scale)


def rounded(value: Tensor, dtype: torch.dtype, scaled: bool = True) -> Tensor:
    """The numbers that a tensor's eight bits stand for, in its own type."""
    if not scaled:
        return saturated(value, dtype)
    return stored(value, dtype).plain().to(value.dtype)


def summed(parts: Sequence[Tensor]) -> Stored:
    """The mean of the gradients of several processes, each in E4M3 by one common scale, added in E4M3."""
    world = len(parts)
    shares = [part.float() / world for part in parts]
    scale = scale_of(torch.stack(shares), E4M3)
    common = scale / world**0.5
    total = stored(shares[0], E4M3, scale=common)
    for share in shares[1:]:
        other = stored(share, E4M3, scale=common)
        added = total.plain() + other.plain()
        total = stored(added, E4M3, scale=common)
    return total


class Kept(NamedTuple):
    """What AdamW keeps of one parameter."""

    master: Stored
    first: Stored
    second: Stored
    step: int

    @property
    def size_bytes(self) -> int:
        """Bytes of master and moments."""
        parts = self.master, self.first, self.second
        return sum(part.size_bytes for part in parts)


def started(weight: Tensor, config: Config) -> Kept:
    """The state before the first step."""
    zeros = torch.zeros_like(weight)
    master = stored(weight, HALF, config.scaled)
    first = stored(zeros, E4M3)
    form = HALF if config.second == "float16" else E4M3
    second = stored(zeros, form)
    return Kept(master, first, second, 0)


def adamw(kept: Kept, grad: Tensor, config: Config, *, lr: float, betas: tuple[float, float] = (0.9, 0.95),
          eps: float = 1e-8, weight_decay: float = 0.0) -> Kept:
    """The state after a step with a gradient; decay pulls before the step."""
    beta1, beta2 = betas
    step = kept.step + 1
    slope = rounded(grad.float(), E4M3, config.scaled)
    first = torch.lerp(kept.first.plain(), slope, 1 - beta1)
    second = torch.lerp(kept.second.plain(), slope.square(), 1 - beta2)
    even = second / (1 - beta2**step)
    size = even.sqrt() + eps
    heading = first / (1 - beta1**step)
    left = 1 - lr * weight_decay
    pulled = kept.master.plain() * left
    move = heading / size
    master = pulled - lr * move
    again = partial(_alike, scaled=config.scaled)
    return Kept(again(kept.master, master), again(kept.first, first), again(kept.second, second), step)


def _alike(old: Stored, value: Tensor, scaled: bool) -> Stored:
    """A value in the type that its old one is kept in."""
    form = old.numbers.dtype
    return stored(value, form, scaled)


class Float8AdamW:
    """AdamW over named parameters whose state is `Kept`; parameters are float32 copies of their float16 masters."""

    def __init__(self, parameters: Mapping[str, Tensor], config: Config, **options: Any) -> None:
        self.parameters = dict(parameters)
        self.config, self.options = config, options
        self.kept: dict[str, Kept] = {}
        for name, value in parameters.items():
            start = value.detach()
            self.kept[name] = started(start, config)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every parameter that has a gradient, and drop the gradients."""
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            self.kept[name] = adamw(self.kept[name], parameter.grad, self.config, lr=lr, **self.options)
            master = self.kept[name].master.plain()
            parameter.copy_(master)
            parameter.grad = None

    def bytes_per_parameter(self) -> float:
        """Of master, moments and an eight-bit gradient."""
        sizes = [kept.size_bytes for kept in self.kept.values()]
        counts = [value.numel() for value in self.parameters.values()]
        return sum(sizes) / sum(counts) + 1


@method(title="Training in eight-bit floats", paper="FP8-LM: Training FP8 Large Language Models", year=2023)
class Float8(Product):
    """A linear map's product in FP8-LM's formats; see the module's card."""

    config: Config

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[..., D] -> [..., M]."""
        narrow = partial(rounded, dtype=E4M3, scaled=self.config.scaled)
        wide = partial(rounded, dtype=E5M2, scaled=self.config.scaled)
        return product(x, weight, narrow, narrow, wide, weight_grads=narrow)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A small weight and its inputs."""
    return product_example(generator, Config())
