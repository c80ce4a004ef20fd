"""DIVISION: of an activation that backward needs, its block means are kept in sixteen bits and the rest in two.

**Equation:** L = means over blocks of `block` positions (both ways in an image), R = x - up(L); of each channel's map
    m = min R, s = (2^b - 1) / (max R - m + 2e-6), q = round(s (R - m) + u - 1/2) with u ~ U(0, 1), or u = 1/2;
    x^ = up(L) + q / s + m. y and dx are exact; dW = dy^T x^.
**Shapes:** maps [B, C, H, W]; a product's x [..., T, D] is D channels of T positions, W [M, D].
**Reference:** Wang et al. 2022 (2208.12842), sections 3 and 4, and the authors' code (fdmp).
**Differs:** of products and convolutions; batch norms and the one-bit masks of rectifiers are the caller's. The
    last block of a row may be shorter. Sequences are cut along their positions, which the paper has none of.
**Fails when:** a map is one block or less: taking off a constant changes no code, and it is b bits alone; neighbours
    have nothing in common (white noise, rows of an expert's in no order).
**Cost:** b + 16 / block^2 + 32 / (H W) bits a number for 32; a pooling and a rounding forward, their inverse backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from mixwell.core.method import method
from mixwell.kernels.codes import BYTE, pack_codes, unpack_codes
from mixwell.mixing import check_least, check_most
from mixwell.precision.training._parts import Product, product_example

LEAST = 2e-6  # added to the range of a map


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of DIVISION."""

    block: int = 8  # positions of a block, in an image both ways; 0: no means are kept apart
    bits: int = 2  # b, of what is left, 1 to 8
    stochastic: bool = True  # round up or down by chance, right on average; else to the nearest

    def __post_init__(self) -> None:
        check_least(self, block=0, bits=1)
        check_most(self, bits=8)


class Kept(NamedTuple):
    """What is kept of maps [B, C, H, W]."""

    low: Tensor | None  # bfloat16 [B, C, h, w]
    codes: Tensor  # packed, uint8 [B, C, bytes]
    least: Tensor  # bfloat16 [B, C, 1]
    step: Tensor  # bfloat16 [B, C, 1]
    shape: torch.Size
    config: Config

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        parts = [self.codes, self.least, self.step]
        if self.low is not None:
            parts.append(self.low)
        return sum(part.nbytes for part in parts)

    def restored(self) -> Tensor:
        """The maps that they stand for, float32."""
        *_, height, width = self.shape
        codes = unpack_codes(self.codes, self.config.bits)
        places = height * width
        own = codes[..., :places]
        steps = own.float() * self.step
        rest = steps + self.least
        maps = rest.view(self.shape)
        if self.low is None:
            return maps
        return maps + spread(self.low, height, width, self.config.block)


def means(maps: Tensor, block: int) -> Tensor:
    """Of each block of maps [B, C, H, W]; the last of a row or column may be shorter."""
    sides = maps.shape[-2:]
    size = [min(block, side) for side in sides]
    return F.avg_pool2d(maps, size, size, ceil_mode=True, count_include_pad=False)


def spread(low: Tensor, height: int, width: int, block: int) -> Tensor:
    """Each block's number at all its places: [B, C, h, w] -> [B, C, H, W]."""
    wide = low.float()
    down, across = min(block, height), min(block, width)
    tall = wide.repeat_interleave(down, -2)
    whole = tall.repeat_interleave(across, -1)
    cut = whole[..., :height, :]
    return cut[..., :width]


def kept(maps: Tensor, config: Config, generator: torch.Generator | None = None) -> Kept:
    """What is kept of maps [B, C, H, W]; draws come from `generator`."""
    *_, height, width = maps.shape
    low = None
    rest = maps.float()
    if config.block:
        low = means(rest, config.block).to(torch.bfloat16)
        rest = rest - spread(low, height, width, config.block)
    flat = rest.flatten(-2)
    least = flat.amin(-1, keepdim=True).to(torch.bfloat16)
    above = flat - least.float()
    span = above.amax(-1, keepdim=True) + LEAST
    most = 2**config.bits - 1
    step = (span / most).to(torch.bfloat16)
    steps = above / step.float()
    if config.stochastic:
        chance = torch.rand(flat.shape, generator=generator, device=flat.device)
        steps = steps + (chance - 0.5)
    codes = steps.round().clamp(0, most)
    packed = _packed(codes.to(torch.uint8), config.bits)
    return Kept(low, packed, least, step, maps.shape, config)


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Codes of whole maps, filled up to a multiple of eight."""
    missing = -codes.shape[-1] % BYTE
    filled = F.pad(codes, (0, missing))
    return pack_codes(filled, bits)


class _Linear(torch.autograd.Function):
    """x W^T that keeps of x [..., T, D] what `kept` makes of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, config: Config, generator: torch.Generator) -> Tensor:
        maps = _as_maps(x)
        ctx.kept = kept(maps, config, generator)
        ctx.save_for_backward(weight)
        return F.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        outputs, inputs = weight.shape
        channels = ctx.kept.restored().squeeze(-2)
        positions = channels.transpose(-1, -2)
        rows = positions.reshape(-1, inputs)
        slope = grad.reshape(-1, outputs)
        kept_rows = rows.to(grad.dtype)
        slope_w = slope.T @ kept_rows
        return grad @ weight, slope_w, None, None


def _as_maps(x: Tensor) -> Tensor:
    """[..., T, D] as maps [B, D, 1, T]."""
    if x.ndim == 1:
        return _as_maps(x.unsqueeze(0))
    channels = x.transpose(-1, -2)
    maps = channels.unsqueeze(-2)
    lead = maps.shape[-3:]
    return maps.reshape(-1, *lead)


class _Conv2d(torch.autograd.Function):
    """A convolution that keeps of its maps what `kept` makes of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, config: Config,
                generator: torch.Generator) -> Tensor:
        ctx.kept = kept(x, config, generator)
        ctx.form = stride, padding
        ctx.save_for_backward(weight)
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        maps = ctx.kept.restored().to(grad.dtype)
        slope_x = conv2d_input(maps.shape, weight, grad, *ctx.form)
        slope_w = conv2d_weight(maps, weight.shape, grad, *ctx.form)
        return slope_x, slope_w, None, None, None, None


def conv2d(x: Tensor, weight: Tensor, config: Config, generator: torch.Generator, stride: int = 1,
           padding: int = 0) -> Tensor:
    """The convolution of maps [B, C, H, W] with kernels [M, C, k, k], whose weight gradient is DIVISION's."""
    result: Tensor = _Conv2d.apply(x, weight, stride, padding, config, generator)
    return result


@method(title="Activations kept as block means and two bits",
        paper="DIVISION: Memory Efficient Training via Dual Activation Precision", year=2022)
class DualActivations(Product):
    """A linear map that keeps its inputs in few bits for backward; see the module's card."""

    config: Config

    def __init__(self, shape: tuple[int, int], config: Config, generator: torch.Generator) -> None:
        super().__init__(shape, config, generator)
        self.generator = generator

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[..., T, D] -> [..., T, M]; nothing is kept, nor drawn, where no gradient will be asked for."""
        if not (torch.is_grad_enabled() and x.numel()):
            return F.linear(x, weight)
        result: Tensor = _Linear.apply(x, weight, self.config, self.generator)
        return result


def example(generator: torch.Generator) -> dict[str, Any]:
    """A small weight and its inputs."""
    return product_example(generator, Config(block=2))
