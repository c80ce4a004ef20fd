"""GPTQ: columns rounded one after another, the error of each made good by those still to come.

**Equation:** H = (2 / n) sum x x^T over calibration text, H += damp mean(diag H) I, U = upper Cholesky factor of H^-1.
    For j = 0, 1, ...: q_j = Q(w_j), e = (w_j - q_j) / U_jj, w_k -= e U_jk for k > j; a group's grid is taken from the
    weights as they are when its first column comes.
**Shapes:** w [O, I], x [T, I], H and U [I, I] float64; each expert of a stack has its own.
**Reference:** Frantar et al. 2022 (2210.17323), algorithm 1.
**Differs:** inputs come from the model with full weights, not from the layers rounded before; every expert meets every
    token. H in float64. No order by activation.
**Fails when:** text is short: H is known in T directions only (several for each number of a row are
    wanted). On inputs without correlations it is no better than rounding to nearest.
**Cost:** O(T I^2 + I^3 + O I^2) a matrix, memory 8 I^2 bytes for every weight's H; bits as precision.integers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision._parts import (
    Coded,
    check_bits,
    chosen,
    grid_of,
    group_width,
    joined,
    matrices,
    quantised_example,
    row_bits,
)
from mixwell.precision._statistics import by_moments


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of GPTQ."""

    bits: int = 4  # 2 to 8
    group_size: int = 64  # numbers of a row that share a scale; 0: the whole row
    symmetric: bool = True  # no zero point
    damp: float = 0.01  # share of H's mean diagonal that is added to it, above 0
    tokens: int = 16_384  # of calibration text
    head: bool = False  # quantise the output head too
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_bits(self)
        check_least(self, tokens=1)
        check_above(self, damp=0, max_kl_nats=0)


def needs(config: Config) -> Needs:
    """Text, for the inputs of every weight."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def inverse_factor(moments_II: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """(U, which inputs never moved [I]) of a matrix of second moments; those count as if they were independent."""
    H = moments_II.double().clone()
    diagonal = H.diagonal()
    idle_I = diagonal == 0
    diagonal[idle_I] = 1
    diagonal += damp * diagonal.mean()
    lower = torch.linalg.cholesky(H)
    inverse = torch.cholesky_inverse(lower)
    return torch.linalg.cholesky(inverse, upper=True), idle_I


def encode(weight: Tensor, moments_II: Tensor, config: Config) -> Coded:
    """The codes of a matrix [O, I] whose inputs have these second moments."""
    factor = inverse_factor(moments_II, config.damp)
    return _carried(weight, factor, config)


def _carried(weight: Tensor, factor: tuple[Tensor, Tensor], config: Config) -> Coded:
    """The codes of a matrix by what `inverse_factor` gives."""
    U, idle_I = factor
    left = weight.double().clone()
    left[:, idle_I] = 0  # nothing comes in there
    width = weight.shape[-1]
    size = group_width(weight, config.group_size)
    codes = torch.zeros_like(weight, dtype=torch.uint8)
    grids = []
    for j in range(width):
        if j % size == 0:
            ahead = left[:, None, j : j + size]
            grid = grid_of(ahead, config.bits, config.symmetric)
            grids.append(grid)
        column = left[:, j, None, None]
        own = grid.codes(column)
        codes[:, j] = own[:, 0, 0]
        error = column - grid.values(own)
        error_O = error.flatten() / U[j, j]
        later = slice(j + 1, None)
        left[:, later] -= torch.outer(error_O, U[j, later])
    scales = [grid.scale for grid in grids]
    zeros = [grid.zero for grid in grids if grid.zero is not None]
    scale = torch.cat(scales, -1)
    zero = torch.cat(zeros, -1) if zeros else None
    bits = row_bits(weight, config.bits)
    return Coded(codes=codes, bits=bits, scale=scale, zero=zero)


def encode_all(weight: Tensor, moments: Tensor, config: Config) -> Coded:
    """The codes of a matrix, or of each expert of a stack; moments [I, I] are all experts', [E, I, I] one for each."""
    factors: Iterable[tuple[Tensor, Tensor]]
    if moments.ndim == 2:  # one factor serves all experts
        factors = repeat(inverse_factor(moments, config.damp))
    else:
        factors = (inverse_factor(own, config.damp) for own in moments)
    each = zip(matrices(weight), factors)
    parts = [_carried(matrix, factor, config) for (_, matrix), factor in each]
    return joined(weight, parts)


@method(title="GPTQ: rounding with the error carried forward",
        paper="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", year=2022,
        tags={"codes", "calibrated"})
def gptq(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose large weights are packed integers chosen by GPTQ. Draws nothing from `generator`.

    Raises `MixwellError` where weights are quantised already, none is there, or a group does not divide a row.
    """
    names = chosen(checkpoint, config.head)
    return by_moments(checkpoint, names, calibration, lambda weight, moments: encode_all(weight, moments, config))


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    return {"checkpoint": quantised_example(generator), "config": Config(group_size=8, tokens=72),
            "generator": generator}
