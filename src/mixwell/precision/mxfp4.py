"""MXFP4: four-bit floating-point numbers with a power of two for each group of 32.

**Equation:** e = floor(log2 max |w|) - 2 (rule "floor") or ceil(log2(max |w| / 6)) (rule "ceil"), kept within -127 to
    127; w' = 2^e times the nearest of +- {0, 0.5, 1, 1.5, 2, 3, 4, 6}.
**Shapes:** w [..., O, I] -> codes of 4 bits (sign highest), exponents uint8 [..., O, I / G].
**Reference:** Open Compute Project 2023, Microscaling Formats (MX) specification 1.0; Rouhani et al. 2023 (2310.10537).
**Differs:** ties go to the smaller magnitude, and there is no negative zero.
**Fails when:** by the rule "floor" what lies above 6 2^e is cut to it: a quarter of the largest weight at worst.
**Cost:** 4 + 8 / G bits per weight, 4.25 in groups of 32, and the table once a matrix; one pass over the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.kernels.codes import E8M0_BIAS, real_scale
from mixwell.mixing import check_above, check_least
from mixwell.precision._parts import Coded, by_table, each_weight, grouped, positive, quantised_example

BITS = 4
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of MXFP4."""

    group_size: int = 32  # G, numbers of a row that share an exponent; 0: the whole row
    rule: Literal["floor", "ceil"] = "floor"  # of the exponent: the specification's, or one that cuts nothing
    head: bool = False  # quantise the output head too
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_least(self, group_size=0)
        check_above(self, max_kl_nats=0)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def exponents(largest: Tensor, rule: str) -> Tensor:
    """The stored exponent of a group whose largest magnitude is given, uint8 with its bias."""
    mantissa, above = torch.frexp(positive(largest))  # largest = mantissa 2^above, mantissa from 0.5 to below 1
    exponent = above - 3
    if rule == "ceil":
        exponent = exponent + (mantissa > 0.75).int()
    kept = exponent.clamp(-E8M0_BIAS, E8M0_BIAS)
    return (kept + E8M0_BIAS).to(torch.uint8)


def encode(weight: Tensor, config: Config) -> Coded:
    """The codes of a weight [..., O, I]."""
    groups = grouped(weight, config.group_size)
    largest = groups.abs().amax(-1)
    scale = exponents(largest, config.rule)
    step = real_scale(scale).to(groups.dtype)
    steps = groups / step.unsqueeze(-1)
    sizes = torch.tensor(MAGNITUDES, dtype=steps.dtype, device=weight.device)
    middles = (sizes[1:] + sizes[:-1]) / 2
    codes = torch.bucketize(steps.abs(), middles)
    negative = (steps < 0) & (codes > 0)
    signed = codes + len(MAGNITUDES) * negative
    table = torch.cat([sizes, -sizes]).float()
    return by_table(weight, signed, scale, table)


def bits_per_weight(config: Config, width: int) -> float:
    """Stored bits for each weight of a row of `width`, exponents included, without table and the bits of rows."""
    return BITS + 8 / (config.group_size or width)


@method(title="Microscaling four-bit floats (MXFP4)", paper="Microscaling Data Formats for Deep Learning", year=2023,
        tags={"codes", "nearest"})
def mxfp4(checkpoint: Checkpoint, config: Config, generator: torch.Generator) -> Checkpoint:
    """A checkpoint whose large weights are MXFP4. Draws nothing from `generator`.

    Raises `MixwellError` where weights are quantised already, none is there, or a group does not divide a row.
    """
    return each_weight(checkpoint, config.head, lambda weight: encode(weight, config))


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    return {"checkpoint": quantised_example(generator), "config": Config(group_size=8), "generator": generator}
