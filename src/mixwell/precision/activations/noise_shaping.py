"""Random Fourier features in one bit each, the error of one handed on to the next, and condensed block by block.

**Equation:** z_i = cos(w_i . x + b_i), w ~ N(0, I / sigma^2), b uniform below 2 pi; q_i = sign(v_i), u_i = v_i - q_i
    with first: v_i = u_{i-1} + z_i; second: v_i = 7/6 u_{i-1} - 1/6 u_{i-7} + z_i; beta: v_i = beta u_{i-1} + z_i, u
    anew at each block; sign: v_i = z_i. A block of l features becomes one number, sqrt(2 / p) v . q / |v|; v of ones
    (first, sign), of a triangle of l = 2 t - 1 (second), of beta^-j (beta). Their dot product stands for
    exp(-|x - y|^2 / (2 sigma^2)).
**Shapes:** x [N, D], y [M, D], features [N, p] from p l bits, kernel [N, M].
**Reference:** Zhang, Cloninger and Saab 2021 (2106.02614), sections 2 and 3, and a script of an author.
**Differs:** sign(0) = 1. What is kept is told by the number of values that a block's sum can take.
**Fails when:** blocks are wide and p small: condensed features vary as p of them do, not as p l. Beta above 1.1 lets u
    grow where |z| is near 1.
**Cost:** p l cosines a row; p log2(l + 1) bits (first, sign), p log2(t^2 + 1) (second), p l (beta).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.precision.activations._parts import Rounded

Scheme = Literal["first", "second", "beta", "sign"]
SCHEMES = ("first", "second", "beta", "sign")
NEAR, FAR, BACK = 7 / 6, -1 / 6, 7  # of the second order: what u_{i-1} and u_{i-7} count


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of features in one bit."""

    features: int = 256  # p, numbers that are kept of a row
    block: int = 15  # l, bits that a number is made of; odd for the second order
    scheme: Scheme = "first"
    width: float = 1.0  # sigma, above 0
    beta: float = 1.1  # of the scheme of that name, above 1 to below 2

    def __post_init__(self) -> None:
        check_least(self, features=1, block=1)
        check_above(self, width=0)
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme is {self.scheme!r}; expected {', '.join(SCHEMES)}")
        if self.scheme == "second" and self.block % 2 == 0:
            raise ValueError(f"block is {self.block}; the second order takes odd ones")
        if not 1 < self.beta < 2:
            raise ValueError(f"beta is {self.beta}; expected above 1 and below 2")


def waves(x_ND: Tensor, w_DF: Tensor, b_F: Tensor) -> Tensor:
    """z [N, F]."""
    turned = x_ND.double() @ w_DF
    return torch.cos(turned + b_F)


def drawn(dim: int, config: Config, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(w [D, p l], b [p l]) in float64."""
    count = config.features * config.block
    w_DF = torch.randn(dim, count, generator=generator, dtype=torch.float64)
    shares_F = torch.rand(count, generator=generator, dtype=torch.float64)
    return w_DF / config.width, 2 * math.pi * shares_F


def shaped(z_NF: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """(q, u) [N, F] of features: bits as -1 and 1, and what is handed on."""
    nothing = torch.zeros_like(z_NF[:, 0])
    bits: list[Tensor] = []
    rests: list[Tensor] = []
    for place, z_N in enumerate(z_NF.unbind(1)):
        last = rests[-1] if rests else nothing
        v_N = z_N
        if config.scheme == "first":
            v_N = z_N + last
        elif config.scheme == "second":
            far = rests[place - BACK] if place >= BACK else nothing
            v_N = z_N + NEAR * last + FAR * far
        elif config.scheme == "beta" and place % config.block:
            v_N = z_N + config.beta * last
        q_N = torch.where(v_N >= 0, 1.0, -1.0).to(z_NF)
        bits.append(q_N)
        rests.append(v_N - q_N)
    return torch.stack(bits, 1), torch.stack(rests, 1)


def window(config: Config) -> Tensor:
    """v [l], float64."""
    places = torch.arange(1, config.block + 1, dtype=torch.float64)
    if config.scheme == "second":
        return torch.minimum(places, places.flip(0))
    if config.scheme == "beta":
        return config.beta**-places
    return torch.ones_like(places)


def condensed(q_NF: Tensor, config: Config) -> Tensor:
    """Features [N, p] of bits or of waves [N, p l]."""
    v_l = window(config)
    blocks = q_NF.double().unflatten(1, (-1, config.block))
    size = v_l.norm() * (config.features / 2) ** 0.5
    return blocks @ v_l / size


def bits_of(rows: int, config: Config) -> float:
    """That the features of so many rows take."""
    half = (config.block + 1) // 2
    values = config.block + 1
    if config.scheme == "second":
        values = half**2 + 1
    elif config.scheme == "beta":
        values = 2**config.block
    numbers = rows * config.features
    return numbers * math.log2(values)


def kernel(x_ND: Tensor, y_MD: Tensor, width: float) -> Tensor:
    """exp(-|x - y|^2 / (2 sigma^2)) [N, M] in float64."""
    distances = torch.cdist(x_ND.double(), y_MD.double())
    shares = distances / width
    return torch.exp(-shares.square() / 2)


@method(title="Noise-shaped bits of random Fourier features",
        paper="Sigma-Delta and Distributed Noise-Shaping Quantization Methods for Random Fourier Features", year=2021)
def noise_shaping(x_ND: Tensor, y_MD: Tensor, config: Config, generator: torch.Generator) -> Rounded:
    """The kernel of two sets of rows by condensed bits [N, M], beside the kernel itself. `generator` draws waves.

    Raises ValueError where rows differ in width.
    """
    dim = x_ND.shape[1]
    if y_MD.shape[1] != dim:
        raise ValueError(f"rows of {dim} and of {y_MD.shape[1]}; expected one width")
    w_DF, b_F = drawn(dim, config, generator)
    found = []
    for rows in (x_ND, y_MD):
        q, _ = shaped(waves(rows, w_DF, b_F), config)
        found.append(condensed(q, config))
    ours, theirs = found
    bits = bits_of(len(x_ND) + len(y_MD), config)
    return Rounded(ours @ theirs.T, kernel(x_ND, y_MD, config.width), bits)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five rows and three."""
    x_ND = torch.rand(5, 2, generator=generator)
    y_MD = torch.rand(3, 2, generator=generator)
    return {"x_ND": x_ND, "y_MD": y_MD, "config": Config(features=64, block=15), "generator": generator}
