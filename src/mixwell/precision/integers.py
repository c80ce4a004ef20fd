"""Weights in few bits by rounding to nearest: integers of 2 to 8 bits with a scale for each group of a row.

**Equation:** symmetric: s = max |w| / L, q = clamp(round(w / s), -L, L), w' = s q, L = 2^(b-1) - 1. Asymmetric: l =
    min(0, min w), h = max(0, max w), s = (h - l) / (2^b - 1), z = round(-l / s),
    c = clamp(round(w / s) + z, 0, 2^b - 1), w' = s (c - z).
**Shapes:** w [..., O, I] -> codes of b bits, s [..., O, I / G], z uint8 [..., O, I / G].
**Reference:** Jacob et al. 2018 (1712.05877), section 2.1; groups as in Dettmers and Zettlemoyer 2023 (2212.09720).
**Differs:** symmetric scales are bfloat16, asymmetric ones float32. With `input_bits`, inputs are rounded token by
    token (symmetric) as they come: W8A8 is bits 8, group_size 0, input_bits 8; products are taken in floating point.
**Fails when:** one weight of a group is far larger than the others; two and three bits lose most models.
**Cost:** b + 16 / G bits per weight, asymmetric b + 40 / G; one pass over the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.mixing import check_above
from mixwell.precision._parts import Coded, check_bits, check_input_bits, each_weight, nearest, quantised_example


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of rounding to nearest."""

    bits: int = 4  # b, 2 to 8
    group_size: int = 64  # G, numbers of a row that share a scale; 0: the whole row
    symmetric: bool = True  # no zero point
    input_bits: int = 0  # of the inputs, 2 to 8; 0 leaves them as they are
    head: bool = False  # quantise the output head too
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_bits(self)
        check_above(self, max_kl_nats=0)
        check_input_bits(self)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def encode(weight: Tensor, config: Config) -> Coded:
    """The codes of a weight [..., O, I]."""
    return nearest(weight, config.bits, config.group_size, config.symmetric, config.input_bits)


def bits_per_weight(config: Config, width: int) -> float:
    """Stored bits for each weight of a row of `width`, scales and zero points included, without the bits of rows."""
    beside = 16 if config.symmetric else 40
    return config.bits + beside / (config.group_size or width)


@method(title="Integer weights in groups, rounded to nearest",
        paper="The case for 4-bit precision: k-bit Inference Scaling Laws", year=2022, tags={"codes", "nearest"})
def integers(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """A checkpoint whose large weights are packed integers. Draws nothing from `generator`.

    Raises `MixwellError` where weights are quantised already, none is there, or a group does not divide a row.
    """
    return each_weight(checkpoint, config.head, lambda weight: encode(weight, config))


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    return {"checkpoint": quantised_example(generator), "config": Config(group_size=8), "generator": generator}
