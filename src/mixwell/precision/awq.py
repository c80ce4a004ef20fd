"""AWQ: channels that large inputs meet are scaled up before rounding, so that their error counts less.

**Equation:** a_j = mean_t |x_tj|; for r = 0, 0.05, ..., 0.95: s = max(a^r, 1e-4), s /= sqrt(max s min s), loss(r) =
    sum_W tr(D H D^T), D = Q(W diag(s)) diag(1/s) - W, H = sum x x^T; the r of least loss is kept, the norm's
    gain divided by s and W diag(s) rounded.
**Shapes:** x [T, D], W [..., O, D], s [D], H [D, D].
**Reference:** Lin et al. 2023 (2306.00978), section 3.2; the search as in the authors' code.
**Differs:** the loss is that of the maps that one norm feeds, not of attention or the block as a whole; only inputs
    that come from a norm are scaled, weights are not clipped. The router is scaled, too; all experts weigh alike.
**Fails when:** all channels are alike: r = 0 wins, which is rounding to nearest.
**Cost:** 20 roundings of each weight and one pass over the text; bits as precision.integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision._folding import fed, norm_inputs, scaled
from mixwell.precision._parts import check_bits, chosen, each_weight, named, nearest, rounded, whole_example
from mixwell.precision._statistics import calibrated, means_and_moments, output_error

STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of AWQ."""

    bits: int = 4  # 2 to 8
    group_size: int = 64  # numbers of a row that share a scale; 0: the whole row
    symmetric: bool = False  # no zero point
    tokens: int = 16_384  # of calibration text
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_bits(self)
        check_least(self, tokens=1)
        check_above(self, max_kl_nats=0)


def needs(config: Config) -> Needs:
    """Text, for the inputs of every weight."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def scales(magnitudes_D: Tensor, ratio: float) -> Tensor:
    """s [D] at an exponent r."""
    s_D = magnitudes_D**ratio
    s_D = s_D.clamp_min(1e-4)
    return s_D / (s_D.max() * s_D.min()).sqrt()


def loss(weights: Sequence[Tensor], s_D: Tensor, moments_DD: Tensor, config: Config) -> float:
    """The squared error of what the weights give, with columns scaled by s while they are rounded."""
    total = 0.0
    for weight in weights:
        wide = weight.double()
        back = rounded(wide * s_D, config.bits, config.group_size, config.symmetric) / s_D
        total += output_error(back - wide, moments_DD)
    return total


def search(weights: Sequence[Tensor], magnitudes_D: Tensor, moments_DD: Tensor, config: Config) -> Tensor:
    """The s [D] of least loss; of equal ones the smallest exponent's."""
    tried = [scales(magnitudes_D, step / STEPS) for step in range(STEPS)]
    losses = [loss(weights, s_D, moments_DD, config) for s_D in tried]
    return tried[losses.index(min(losses))]


@method(title="AWQ: scaling by the size of inputs before rounding",
        paper="AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", year=2023,
        tags={"codes", "calibrated"})
def awq(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose large weights are packed integers, norms rescaled. Draws nothing from `generator`.

    Raises `MixwellError` where norms do not stand before attention and SwiGLU blocks, and as `precision.integers`.
    """
    names = chosen(checkpoint, False)
    groups = fed(checkpoint, "scaling by inputs")
    asked = {norm: norm_inputs(norm, readers) for norm, readers in groups.items()}
    inputs = list(asked.values())
    means, moments = means_and_moments(checkpoint, inputs, calibration)
    tensors = dict(checkpoint.tensors)
    for norm, readers in groups.items():
        weights = [tensors[name] for name in readers if name in names]
        given = asked[norm]
        s_D = named(given, search, weights, means[given], moments[given], config)
        tensors |= scaled(tensors, norm, readers, s_D)
    record = calibrated(checkpoint, calibration)
    scaled_up = checkpoint.derive(tensors=tensors)
    encode = partial(nearest, bits=config.bits, group_size=config.group_size, symmetric=config.symmetric)
    return each_weight(scaled_up, False, encode, record)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of one layer with attention and a mixture."""
    config = Config(group_size=8, tokens=72)
    return {"checkpoint": whole_example(generator), "config": config, "generator": generator}
