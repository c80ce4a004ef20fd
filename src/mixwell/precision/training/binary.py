"""Binary products: the operators that BiBench compares, as rows of one table.

**Equation:** y = a_M (sign(x + c) sign(w)^T) b, sign(0) = 1, with what a row of `OPERATORS` adds: w less its row's
    mean; a = mean |w| of a row without gradient, or learned; b = mean |x| of a token; c learned; backward sign is a
    surrogate: "clip" slope 1 where |x| <= 1, "straight" 1, "quadratic" 2 - 2 |x| there, "fourier" (4 f / pi) sum_i
    cos((2 i + 1) f x), i = 0 to 9, f = 0.1.
    bnn: clip, no scale. dorefa: row means. xnor: centred, row means, token means. xnor_pp: a learned. bi_real: row
    means, quadratic. react: as bi_real with c. recu: w over its spread and cut at -E|w| ln(2 - 2 tau), x over its
    spread in training, a learned. fda: row means, fourier.
**Shapes:** x [..., D], w [M, D] -> y [..., M].
**Reference:** Qin et al. 2023 (2301.11233), and its code; Courbariaux, Zhou, Rastegari, Bulat, Liu, Xu and their
    coauthors for the operators.
**Differs:** react takes the sign of the shifted input (the released linear layer shifts backward alone); recu's tau is
    a constant, which the release lets rise from 0.85 to 0.99; fda has no noise network.
**Fails when:** inputs are all of one sign, behind a rectifier say: sign says nothing; the first and the last layer of
    a net, which stay whole everywhere.
**Cost:** one bit a weight and 32 a row; D - 2 popcount(x xor w) an output (`by_bits`); emulated here in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.mixing import check_above, check_below, check_one_of
from mixwell.precision.training._parts import Product, product_example, sign

FREQUENCY, TERMS = 0.1, 10  # of the fourier surrogate
SMALL = 1e-5  # added to a variance
Surrogate = Callable[[Tensor], Tensor]  # a function whose slope stands in for that of the sign


def _straight(x: Tensor) -> Tensor:
    return x


def _clip(x: Tensor) -> Tensor:
    return x.clamp(-1, 1)


def _quadratic(x: Tensor) -> Tensor:
    inside = x.clamp(-1, 1)
    return 2 * inside - inside * inside.abs()


def _fourier(x: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for term in range(TERMS):
        odd = 2 * term + 1
        wave = (odd * FREQUENCY * x).sin()
        total = total + wave / odd
    return 4 / math.pi * total


class Operator(NamedTuple):
    """What one operator adds to the product of signs."""

    surrogate: Surrogate = _clip  # of inputs
    weights: Surrogate = _straight  # of weights
    centred: bool = False  # weights less their row's mean
    rows: str = ""  # scale of a row: "", "mean" of its magnitudes, "ones" or "drawn", both learned
    tokens: bool = False  # times the mean magnitude of the token
    shift: bool = False  # inputs are moved by a learned number a channel
    spread: bool = False  # weights and inputs over their spread, weights cut where few are


OPERATORS: dict[str, Operator] = {
    "bnn": Operator(weights=_clip),
    "dorefa": Operator(rows="mean"),
    "xnor": Operator(centred=True, rows="mean", tokens=True),
    "xnor_pp": Operator(rows="ones"),
    "bi_real": Operator(surrogate=_quadratic, rows="mean"),
    "react": Operator(surrogate=_quadratic, rows="mean", shift=True),
    "recu": Operator(rows="drawn", centred=True, spread=True),
    "fda": Operator(surrogate=_fourier, rows="mean"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of binary products."""

    operator: str = "react"  # a row of OPERATORS
    tau: float = 0.9  # of recu: share of the weights that the cut leaves as they are, above 0.5 and below 1

    def __post_init__(self) -> None:
        check_one_of(self, operator=tuple(OPERATORS))
        check_above(self, tau=0.5)
        check_below(self, tau=1)


def signs(value: Tensor, surrogate: Surrogate) -> Tensor:
    """The signs of a value; a gradient takes the surrogate's slope."""
    smooth = surrogate(value)
    return sign(value).detach() + (smooth - smooth.detach())


def row_means(weight: Tensor) -> Tensor:
    """The mean magnitude of each row [M], without gradient."""
    sizes = weight.detach().abs()
    return sizes.mean(-1)


def revived(weight: Tensor, tau: float) -> Tensor:
    """recu's weights [M, D]: each row over its spread, and cut where a Laplace law has the share tau behind."""
    deviation = weight.std(-1, keepdim=True)
    spread = deviation / (2 * math.sqrt(2))
    even = weight / (spread + SMALL)
    share = -math.log(2 - 2 * tau)
    sizes = row_means(even)
    most = share * sizes.unsqueeze(-1)
    below = torch.minimum(even, most)
    return torch.maximum(below, -most)


def by_bits(x: Tensor, weight: Tensor) -> Tensor:
    """The product of signs [N, M] of x [N, D] and a weight [M, D] by exclusive or and count of bits, int64."""
    inputs = x.shape[-1]
    rows = _bits(x)
    columns = _bits(weight)
    unlike = np.expand_dims(rows, 1) ^ columns
    ones = np.unpackbits(unlike, axis=-1)
    counts = ones.sum(-1, dtype=np.int64)
    products = inputs - 2 * counts
    return torch.from_numpy(products)


def _bits(value: Tensor) -> Any:
    above = value >= 0
    return np.packbits(above.numpy(), axis=-1)


@method(title="Binary products by the operators of a benchmark",
        paper="BiBench: Benchmarking and Analyzing Network Binarization", year=2023)
class Binary(Product):
    """A linear map's product of signs; see the module's card."""

    config: Config
    learns = True

    def __init__(self, shape: tuple[int, int], config: Config, generator: torch.Generator) -> None:
        super().__init__(shape, config, generator)
        self.operator = OPERATORS[config.operator]
        outputs, inputs = shape
        self.scale = self.shift = None
        if self.operator.rows == "ones":
            self.scale = nn.Parameter(torch.ones(outputs))
        if self.operator.rows == "drawn":
            self.scale = nn.Parameter(torch.rand(outputs, generator=generator))
        if self.operator.shift:
            self.shift = nn.Parameter(torch.zeros(inputs))

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """[..., D] -> [..., M]."""
        operator = self.operator
        own = weight - weight.mean(-1, keepdim=True) if operator.centred else weight
        moved = x if self.shift is None else x + self.shift
        if operator.spread:
            own = revived(own, self.config.tau)
            moved = self._evened(moved)
        inputs = signs(moved, operator.surrogate)
        y = F.linear(inputs, signs(own, operator.weights))
        if operator.rows == "mean":
            y = y * row_means(own)
        if self.scale is not None:
            y = y * self.scale
        if operator.tokens:
            y = y * row_means(x).unsqueeze(-1)
        return y

    def _evened(self, x: Tensor) -> Tensor:
        """Inputs over their spread while training; no sign hangs on it, but where the slope is 1."""
        if not self.training or not x.numel():
            return x
        variance = x.var(correction=0)
        return x / (variance + SMALL).sqrt()


def example(generator: torch.Generator) -> dict[str, Any]:
    """A small weight and its inputs."""
    return product_example(generator, Config())
