"""Hadamard rotation: the residual stream is turned so that no channel stands out, and then rounded.

**Equation:** every norm's gain goes into what reads it (gain 1); with orthogonal Q: embedding E Q, readers W Q, writers
    Q^T W (and biases), head W Q. What the model computes stays, since an RMS norm does not see a rotation. Then weights
    are rounded, and inputs with `input_bits`.
**Shapes:** Q [D, D] = diag(signs) (H_n / sqrt(n) kron R), D = n m, n a power of two, R a random rotation [m, m], m odd.
**Reference:** Ashkboos et al. 2024, QuaRot (2404.00456), section 4, stage 1a.
**Differs:** no rotation at run time: inputs of the output map and of down maps stay as they are. The mean of embedding
    rows stays, since an RMS norm would see it go. An odd factor of the width takes a random rotation instead of a
    stored Hadamard matrix. A tied head becomes one of its own.
**Fails when:** only weights are rounded and they are close to normal already: then nothing is gained.
**Cost:** O(D^2) for each row that reads or writes the stream, once; bits as precision.integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.mixing import check_above
from mixwell.precision._folding import fed
from mixwell.precision._parts import (
    HEAD,
    check_bits,
    check_input_bits,
    chosen,
    each_weight,
    nearest,
    whole_example,
)

WRITERS = ("out.weight", "down_proj")  # endings of what adds to the stream, by rows
BIASES = ("out.bias", "down_bias")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of rotation."""

    bits: int = 4  # of weights, 2 to 8
    group_size: int = 64  # numbers of a row that share a scale; 0: the whole row
    symmetric: bool = True  # no zero point
    input_bits: int = 0  # of inputs, 2 to 8; 0 leaves them as they are
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_bits(self)
        check_above(self, max_kl_nats=0)
        check_input_bits(self)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def hadamard(size: int) -> Tensor:
    """The Sylvester matrix of a power of two over its root, float64 [n, n]: orthogonal."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        above = torch.cat([matrix, matrix], 1)
        below = torch.cat([matrix, -matrix], 1)
        matrix = torch.cat([above, below])
    return matrix / size**0.5


def random_rotation(dim: int, generator: torch.Generator) -> Tensor:
    """Q [D, D] in float64."""
    power = dim & -dim  # the largest power of two that divides
    odd_side = dim // power
    rest = torch.randn(odd_side, odd_side, generator=generator, dtype=torch.float64)
    odd, _ = torch.linalg.qr(rest)
    coins = torch.randint(0, 2, (dim, 1), generator=generator)
    signs = coins.double() * 2 - 1
    return signs * torch.kron(hadamard(power), odd.contiguous())


def rotated(checkpoint: Checkpoint, Q: Tensor) -> Checkpoint:
    """The checkpoint with its residual stream turned by Q; it computes what it did."""
    tensors = dict(checkpoint.tensors)
    head = tensors.get(HEAD, tensors["embed.weight"])
    _read(tensors, "norm.weight", {HEAD: head}, Q)
    for norm, readers in fed(checkpoint, "rotation").items():
        own = {name: tensors[name] for name in readers}
        _read(tensors, norm, own, Q)
    for name in ("embed.weight", "positions.weight"):
        if name in tensors:
            tensors[name] = _as(tensors[name].double() @ Q, tensors[name])
    for name, value in checkpoint.tensors.items():
        if name.startswith("layers.") and name.endswith(WRITERS):
            tensors[name] = _as(Q.T @ value.double(), value)
        elif name.startswith("layers.") and name.endswith(BIASES):
            tensors[name] = _as(value.double() @ Q, value)
    arch = {**checkpoint.arch, "tie_embeddings": False, "architecture": "auto"}
    return checkpoint.derive(arch=arch, tensors=tensors)


def _read(tensors: dict[str, Tensor], norm: str, readers: dict[str, Tensor], Q: Tensor) -> None:
    """Put the norm's gain and the rotation into what reads it."""
    gain = tensors[norm]
    for name, weight in readers.items():
        whole = weight.double() * gain.double()
        turned = whole @ Q
        tensors[name] = _as(turned, weight)
    tensors[norm] = torch.ones_like(gain)


def _as(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype)


@method(title="Rounding behind a Hadamard rotation of the residual stream",
        paper="QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", year=2024, tags={"codes"})
def rotation(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """A checkpoint turned and rounded. `generator` draws the rotation.

    Raises `MixwellError` where norms are not plain RMS norms before attention and SwiGLU blocks, and as
    `precision.integers`.
    """
    chosen(checkpoint, False)  # refuses before the work
    dim = int(checkpoint.arch["dim"])
    Q = random_rotation(dim, generator)
    turned = rotated(checkpoint, Q)
    encode = partial(nearest, bits=config.bits, group_size=config.group_size, symmetric=config.symmetric,
                     input_bits=config.input_bits)
    return each_weight(turned, False, encode)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of one layer with attention and a mixture."""
    return {"checkpoint": whole_example(generator), "config": Config(group_size=8), "generator": generator}
