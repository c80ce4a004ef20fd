"""Weights in float16: every floating tensor rounded to the nearest number of sixteen bits.

**Equation:** w' = the float16 nearest to w, ties to the even one.
**Shapes:** as they are.
**Reference:** IEEE 754-2008, binary16; Micikevicius et al. 2017 (1710.03740) for networks in it.
**Differs:** weights only: they are computed with in float32, or what is quick on the machine.
**Fails when:** a weight is above 65,504, which is refused; numbers below 6e-8 turn 0.
**Cost:** 16 bits per weight; one pass over the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.formats.declared import FLOATING
from mixwell.mixing import check_above
from mixwell.precision._parts import chosen, quantised_example

LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of float16 weights."""

    max_kl_nats: float = 0.01  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_above(self, max_kl_nats=0)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def rounded(weight: Tensor) -> Tensor:
    """The weight in float16; raises ValueError where it is too large for that."""
    half = weight.to(torch.float16)
    finite = half.isfinite()
    if not bool(finite.all()):
        largest = float(weight.abs().max())
        raise ValueError(f"holds {largest:g}; float16 ends at {LARGEST:g}")
    return half


@method(title="Weights in float16", paper="Mixed Precision Training", year=2017)
def half(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """A checkpoint whose floating tensors are float16. Draws nothing from `generator`.

    Raises `MixwellError` where weights are quantised already, none is there, or one is too large.
    """
    chosen(checkpoint, True)
    tensors = {}
    for name, value in checkpoint.tensors.items():
        try:
            tensors[name] = rounded(value) if value.dtype in FLOATING else value
        except ValueError as error:
            raise MixwellError(f"{name} {error}; keep the type that it has.") from error
    return checkpoint.derive(tensors=tensors)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    return {"checkpoint": quantised_example(generator), "config": Config(), "generator": generator}
