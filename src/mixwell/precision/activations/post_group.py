"""MixPE: products of few-bit weights and eight-bit inputs, scaled after each group's sum, by shifts and additions.

**Equation:** y_to = a_t sum_g s_og (sum_{i in g} c_oi x_ti - z_og sum_{i in g} x_ti), x the inputs as integers with a
    scale a for each token, c codes, s and z scale and zero point of a group. A product of a code's bits with x:
    c x = sum_k b_k (x << k), the last bit of a signed code counted below zero.
**Shapes:** x [T, I], W [O, I] in groups of G, y [T, O].
**Reference:** Zhang et al. 2024, MixPE (2411.16158), section 3.
**Differs:** the arithmetic of the processing element alone, in integers; no energy or time of hardware. Zero points are
    8 bits.
**Fails when:** on processors with floating products it is slower than one product of numbers dequantised before.
**Cost:** T O I / G multiplications by scales in place of O I for dequantising and T O I for products; b shifts and
    additions for each of T O I codes; the sums of x in a group serve all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.precision._parts import check_bits, check_input_bits, group_width, nearest
from mixwell.precision.activations._parts import Rounded


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of products scaled after groups."""

    bits: int = 4  # b, of weights, 2 to 8
    group_size: int = 128  # G, numbers of a row that share a scale; 0: the whole row
    symmetric: bool = True  # signed codes, no zero point
    input_bits: int = 8  # of inputs, 2 to 8
    shift_add: bool = True  # whether codes are multiplied bit by bit; the numbers are the same

    def __post_init__(self) -> None:
        check_bits(self)
        check_input_bits(self)
        if not self.input_bits:
            raise ValueError("input_bits is 0; expected 2 to 8, since sums are taken in integers")


def integers_of(x_TI: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(x as integers [T, I] int32, their scale [T, 1])."""
    most = 2 ** (bits - 1) - 1
    largest = x_TI.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest / most, torch.ones_like(largest))
    return (x_TI / scale).round().to(torch.int32), scale


def bit_planes(codes: Tensor, bits: int) -> Tensor:
    """The bits [b, ...] of codes int32, lowest first; negative ones in two's complement."""
    planes = [(codes >> place) & 1 for place in range(bits)]
    return torch.stack(planes)


def shifted_sums(codes_OG: Tensor, x_TG: Tensor, bits: int, signed: bool) -> Tensor:
    """sum_i c_oi x_ti [T, O] by shifts of x, chosen by the codes' bits, and additions; int32."""
    total = torch.zeros(len(x_TG), len(codes_OG), dtype=torch.int32, device=x_TG.device)
    last = bits - 1
    for place, plane_OG in enumerate(bit_planes(codes_OG, bits)):
        chosen = torch.where(plane_OG.bool(), (x_TG << place).unsqueeze(1), 0)
        sums = chosen.sum(-1, dtype=torch.int32)
        total += -sums if signed and place == last else sums
    return total


def multiplied_sums(codes_OG: Tensor, x_TG: Tensor) -> Tensor:
    """The same sums by products."""
    return x_TG @ codes_OG.T


def counts(tokens: int, rows: int, width: int, config: Config) -> dict[str, int]:
    """Multiplications and shifts of the product, and the multiplications of one with numbers dequantised before."""
    groups = width // (config.group_size or width)
    products = tokens * rows * width
    scaled = tokens * rows * groups
    zeros = 0 if config.symmetric else scaled
    own = 0 if config.shift_add else products
    shifts = config.bits * products if config.shift_add else 0
    return {"multiplications": scaled + zeros + own, "shifts": shifts, "before": rows * width + products}


@method(title="MixPE: scales after each group, products by shifts",
        paper="MixPE: Quantization and Hardware Co-design for Efficient LLM Inference", year=2024)
def post_group(x_TI: Tensor, weight_OI: Tensor, config: Config) -> Rounded:
    """The product of rounded inputs and rounded weights [T, O] in float64, beside the one of both as they are.

    Raises ValueError where a group does not divide a row.
    """
    size = group_width(weight_OI, config.group_size)
    coded = nearest(weight_OI, config.bits, size, config.symmetric)
    middle = 2 ** (config.bits - 1) if config.symmetric else 0
    codes = coded.codes.int() - middle
    x, own_scale = integers_of(x_TI.double(), config.input_bits)
    total = torch.zeros(len(x), len(codes), dtype=torch.float64, device=x.device)
    parts = zip(codes.split(size, 1), x.split(size, 1))
    for group, (codes_OG, x_TG) in enumerate(parts):
        if config.shift_add:
            sums = shifted_sums(codes_OG, x_TG, config.bits, config.symmetric)
        else:
            sums = multiplied_sums(codes_OG, x_TG)
        if coded.zero is not None:
            whole_T1 = x_TG.sum(1, keepdim=True, dtype=torch.int32)
            sums = sums - whole_T1 * coded.zero[:, group].int()
        total += sums * coded.scale[:, group].double()
    exact = x_TI.double() @ weight_OI.double().T
    beside = 16 if config.symmetric else 40
    bits = weight_OI.numel() * (config.bits + beside / size)
    return Rounded(total * own_scale, exact, bits)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Four tokens and a matrix of three rows."""
    x_TI = torch.randn(4, 16, generator=generator)
    weight_OI = torch.randn(3, 16, generator=generator)
    return {"x_TI": x_TI, "weight_OI": weight_OI, "config": Config(group_size=8)}
