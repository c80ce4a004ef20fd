"""SmoothQuant: what is hard to round in the inputs is moved into the weights, and both go to eight bits.

**Equation:** s_j = max_t |x_tj|^alpha / (max_W max_o |W_oj|)^(1 - alpha) over all weights W that one norm feeds; the
    norm's gain over s, W diag(s) in place of W; then inputs are rounded token by token and weights row by row.
**Shapes:** x [T, D], W [..., O, D], s [D].
**Reference:** Xiao et al. 2022 (2211.10438), equation 4.
**Differs:** the router reads the norm, too, and is scaled with the rest, as in the authors' code for mixtures; every
    expert counts in the maximum. Products of rounded numbers are taken in floating point.
**Fails when:** no channel stands out: then nothing is gained over rounding token by token.
**Cost:** 8 + 16 / I bits per weight; one pass over the text and one over the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision._folding import fed, largest_columns, norm_inputs, scaled
from mixwell.precision._parts import chosen, each_weight, nearest, whole_example
from mixwell.precision._statistics import calibrated, largest_magnitudes

LEAST = 1e-5  # of scales and of what they are made of


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of SmoothQuant."""

    alpha: float = 0.5  # how much of the difficulty moves into the weights, 0 to 1
    bits: int = 8  # of weights, 2 to 8
    input_bits: int = 8  # of inputs, 2 to 8
    group_size: int = 0  # numbers of a row that share a scale; 0: the whole row
    tokens: int = 16_384  # of calibration text
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_least(self, tokens=1, group_size=0)
        check_above(self, max_kl_nats=0)
        for name in ("bits", "input_bits"):
            if not 2 <= getattr(self, name) <= 8:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 2 to 8")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}; expected 0 to 1")


def needs(config: Config) -> Needs:
    """Text, for the largest inputs."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def smoothing(inputs_D: Tensor, weights_D: Tensor, alpha: float) -> Tensor:
    """s [D] of the largest inputs and the largest weights of each channel."""
    numerator = inputs_D.clamp_min(LEAST) ** alpha
    denominator = weights_D.clamp_min(LEAST) ** (1 - alpha)
    return (numerator / denominator).clamp_min(LEAST)


def smoothed(checkpoint: Checkpoint, alpha: float, calibration: Inputs) -> Checkpoint:
    """The checkpoint with norms and what they feed rescaled; it computes what it did."""
    groups = fed(checkpoint, "smoothing")
    asked = {norm: norm_inputs(norm, readers) for norm, readers in groups.items()}
    names = list(asked.values())
    largest = largest_magnitudes(checkpoint, names, calibration)
    tensors = dict(checkpoint.tensors)
    for norm, readers in groups.items():
        weights = [tensors[name] for name in readers]
        weights_D = largest_columns(weights)
        inputs_D = largest[asked[norm]]
        s_D = smoothing(inputs_D, weights_D, alpha)
        tensors |= scaled(tensors, norm, readers, s_D)
    return checkpoint.derive(tensors=tensors)


@method(title="SmoothQuant: eight bits for weights and inputs",
        paper="SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", year=2022,
        tags={"codes", "calibrated"})
def smoothquant(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint smoothed and rounded, inputs included. Draws nothing from `generator`.

    Raises `MixwellError` where norms do not stand before attention and SwiGLU blocks, and as `precision.integers`.
    """
    chosen(checkpoint, False)  # refuses before the work
    smooth = smoothed(checkpoint, config.alpha, calibration)
    record = calibrated(checkpoint, calibration)
    encode = partial(nearest, bits=config.bits, group_size=config.group_size, symmetric=True,
                     input_bits=config.input_bits)
    return each_weight(smooth, False, encode, record)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A model of one layer with attention and a mixture."""
    return {"checkpoint": whole_example(generator), "config": Config(tokens=72), "generator": generator}
