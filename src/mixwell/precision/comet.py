"""FMPQ (COMET): channels with outliers are gathered in few blocks of eight bits, all other inputs have four.

**Equation:** m_j = max_t |x_tj| over text; channels sorted by m, largest first, cut in blocks of G; a block with a
    channel above threshold times the median of m has `high` bits, any other `low`. y_to = sum over blocks s_tb r_ob
    (q_tb . p_ob), q the inputs and p the weights of a block as integers, s and r their scales, symmetric.
**Shapes:** x [T, I], W [..., O, I], blocks I / G; each expert's down map has an order of its own.
**Reference:** Liu et al. 2024 (2410.12168), section 3.
**Differs:** the order stands beside the codes and is followed as inputs are read, in place of a fold into the layer
    before: a residual stream has many readers. Channels are sorted throughout, not parted in two. Products of integers
    are taken in floating point. The cache stays as it is (precision.activations.key_blocks rounds keys).
**Fails when:** outliers move from channel to channel with the token: blocks are fixed.
**Cost:** b + 16 / G bits per weight, 32 / O of the order and 8 / (G O) of blocks; one pass over the text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
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
    each_coded,
    group_width,
    named,
    nearest,
    quantised_example,
    with_codes,
)
from mixwell.precision._statistics import calibrated, largest_magnitudes


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of FMPQ."""

    bits: int = 4  # of weights, 2 to 8
    group_size: int = 128  # G, channels of a block, which weights share a scale in, too; 0: the whole row
    low: int = 4  # bits of inputs in most blocks, 2 to 8
    high: int = 8  # bits of inputs in blocks with outliers, low to 8
    threshold: float = 4.0  # of outliers, times the median channel, above 0
    permute: bool = True  # whether channels are sorted; else blocks are as the channels come
    tokens: int = 16_384  # of calibration text
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_bits(self)
        check_least(self, tokens=1)
        check_above(self, threshold=0, max_kl_nats=0)
        if not 2 <= self.low <= self.high <= 8:
            raise ValueError(f"low is {self.low} and high is {self.high}; expected 2 <= low <= high <= 8")


def needs(config: Config) -> Needs:
    """Text, for the largest inputs."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def laid_out(largest_I: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """(the order of channels [I], the bits of each block [N]) of the largest magnitude of each channel."""
    width = len(largest_I)
    order_I = torch.arange(width, device=largest_I.device)
    if config.permute:
        order_I = largest_I.argsort(descending=True, stable=True)
    edge = config.threshold * largest_I.median()
    apart_I = largest_I[order_I] > edge
    size = group_width(largest_I, config.group_size)
    apart_N = apart_I.unflatten(0, (-1, size)).any(1)
    bits_N = torch.where(apart_N, config.high, config.low)
    return order_I.to(torch.int32), bits_N.to(torch.uint8)


def encode(weight: Tensor, largest_I: Tensor, config: Config) -> Coded:
    """The codes of a matrix [O, I] whose inputs have these largest magnitudes."""
    order_I, bits_N = laid_out(largest_I, config)
    coded = nearest(weight[:, order_I], config.bits, config.group_size, True)
    return replace(coded, order=order_I, block_bits=bits_N)


def encode_all(weight: Tensor, largest: Tensor, config: Config) -> Coded:
    """The codes of a matrix, or of each expert of a stack; largest [I] are all experts', [E, I] one for each."""
    return each_coded(weight, largest, 1, partial(encode, config=config))


def shares(made: dict[str, Coded], low: int) -> dict[str, float]:
    """Of each weight, the share of its inputs' blocks that have the fewer bits."""
    found = {}
    for name, coded in made.items():
        assert coded.block_bits is not None
        few = coded.block_bits == low
        found[name] = float(few.double().mean())
    return found


@method(title="FMPQ: inputs of four bits but for blocks of outliers",
        paper="COMET: Towards Partical W4A4KV4 LLMs Serving", year=2024, tags={"codes", "calibrated"})
def comet(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose large weights are integers in blocks that round their inputs. Draws nothing.

    Raises `MixwellError` as `precision.integers`.
    """
    names = chosen(checkpoint, False)
    largest = largest_magnitudes(checkpoint, names, calibration)
    made = {}
    for name in names:
        weight, own = checkpoint.tensors[name], largest[name]
        made[name] = named(name, encode_all, weight, own, config)
    record = calibrated(checkpoint, calibration)
    record["blocks_with_few_bits"] = shares(made, config.low)
    return with_codes(checkpoint, made, record)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    config = Config(group_size=8, tokens=72)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
