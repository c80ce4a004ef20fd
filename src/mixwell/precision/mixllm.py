"""MixLLM: the rows that the loss misses most get more bits, ranked over all layers and experts at once.

**Equation:** for each window of text, G = gradient of its mean cross-entropy by W, D = Q_low(W) - W, a_o = sum_i G_oi
    D_oi; score_o = sum over windows of |a_o + a_o^2 / 2|. The `share` of all rows with the highest scores get `high`
    bits, the rest `low`; c = clamp(round(w / s) + z, 0, 2^b - 1) in groups.
**Shapes:** W and G [..., O, I]; score [..., O].
**Reference:** Zheng et al. 2024 (2412.14590), section 3 and the authors' code.
**Differs:** rounding to nearest alone, without clipping or GPTQ behind it; inputs stay whole, unless `input_bits`
    rounds them token by token (not in groups of 128).
**Fails when:** the rows are alike; one row in ten then buys nothing.
**Cost:** one gradient a window; low + share (high - low) + 40 / G bits per weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision._parts import (
    Coded,
    check_input_bits,
    chosen,
    named,
    nearest,
    quantised_example,
    rounded,
    with_codes,
)
from mixwell.precision._statistics import calibrated


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of MixLLM."""

    low: int = 4  # bits of most rows, 2 to 7
    high: int = 8  # bits of the others, above low, to 8
    share: float = 0.1  # of rows with the higher bits, 0 to 1
    group_size: int = 64  # numbers of a row that share a scale; 0: the whole row
    input_bits: int = 0  # of inputs, 2 to 8; 0 leaves them as they are
    tokens: int = 8192  # of calibration text
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_least(self, tokens=1, group_size=0)
        check_above(self, max_kl_nats=0)
        if not 2 <= self.low < self.high <= 8:
            raise ValueError(f"low is {self.low} and high {self.high}; expected 2 <= low < high <= 8")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}; expected 0 to 1")
        check_input_bits(self)


def needs(config: Config) -> Needs:
    """Text, for the gradients."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def row_changes(gradient: Tensor, change: Tensor) -> Tensor:
    """|a + a^2 / 2| of each row [..., O], from the gradient and the change of a weight [..., O, I]."""
    along = (gradient * change.to(gradient.dtype)).sum(-1)
    return (along + along.square() / 2).abs()


def scores(checkpoint: Checkpoint, changes: Mapping[str, Tensor], calibration: Inputs) -> dict[str, Tensor]:
    """The score of every row, by weight."""
    weights = {name: checkpoint.tensors[name] for name in changes}
    total: dict[str, Tensor] = {}
    for slopes in calibration.slopes(checkpoint, weights, rows=1):
        for name, gradient in slopes.items():
            own = row_changes(gradient, changes[name])
            before = total.get(name)
            total[name] = own if before is None else before + own
    return total


def highest(score: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Which rows [..., O] are among the `share` of all with the highest scores; of equal ones the first."""
    flat = [value.flatten() for value in score.values()]
    everything = torch.cat(flat)
    count = round(share * len(everything))
    order = everything.argsort(descending=True, stable=True)
    mask = torch.zeros_like(everything, dtype=torch.bool)
    mask[order[:count]] = True
    sizes = [len(value) for value in flat]
    found = {}
    for name, part in zip(score, mask.split(sizes)):
        found[name] = part.view_as(score[name])
    return found


def encode(weight: Tensor, high: Tensor, config: Config) -> Coded:
    """The codes of a weight [..., O, I] whose rows `high` [..., O] get the higher bits."""
    few = nearest(weight, config.low, config.group_size, False)
    many = nearest(weight, config.high, config.group_size, False)
    bits = torch.where(high, many.bits, few.bits)
    row = high.unsqueeze(-1)
    found = {}
    for name in ("codes", "scale", "zero"):
        one, other = getattr(many, name), getattr(few, name)
        found[name] = torch.where(row, one, other)
    return Coded(bits=bits, input_bits=config.input_bits, **found)


def _change(weight: Tensor, config: Config) -> Tensor:
    low = rounded(weight, config.low, config.group_size, False)
    return low - weight.double()


@method(
    title="MixLLM: more bits for salient output features",
    paper="MixLLM: LLM Quantization with Global Mixed-precision between Output-features and Highly-efficient System "
          "Design",
    year=2024,
    tags={"codes", "calibrated"},
)
def mixllm(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose rows have one of two widths. Draws nothing from `generator`.

    Raises `MixwellError` as `precision.integers`.
    """
    names = chosen(checkpoint, False)
    changes = {}
    for name in names:
        weight = checkpoint.tensors[name]
        changes[name] = named(name, _change, weight, config)
    score = scores(checkpoint, changes, calibration)
    high = highest(score, config.share)
    made = {}
    for name in names:
        weight = checkpoint.tensors[name]
        made[name] = encode(weight, high[name], config)
    record = calibrated(checkpoint, calibration)
    return with_codes(checkpoint, made, record=record)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    config = Config(group_size=8, tokens=72)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
