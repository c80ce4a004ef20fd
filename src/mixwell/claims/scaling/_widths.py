"""Small networks of several widths, trained in full batches, and how far their last hidden layer moves.

Legend: T rows, I inputs of a layer, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixwell.core.rng import generator
from mixwell.scaling.feature_learning import slope

WIDTHS = (64, 128, 256, 512, 1024)
FEWER = (32, 64, 128, 256)  # where a step takes eigenvalues
ROWS, INPUTS, STEPS = 32, 10, 10


class Layer(NamedTuple):
    """A layer's weight and its multiplier."""

    weight_OI: Tensor
    multiplier: float


class Pass(NamedTuple):
    """What went into each layer and what came out of it, before the tanh; the gradient at each output."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    errors: Sequence[Tensor]


Made = Callable[[int, torch.Generator], list[Layer]]  # a network of some width
Step = Callable[[list[Layer], Pass, int], list[Layer]]  # after a step, at that width


def drawn(deviations: Sequence[float], multipliers: Sequence[float], width: int,
          draws: torch.Generator) -> list[Layer]:
    """Three layers with weights of these deviations."""
    sizes = [INPUTS, width, width, 1]
    found = []
    for place, (deviation, multiplier) in enumerate(zip(deviations, multipliers)):
        shape = sizes[place + 1], sizes[place]
        weight = torch.randn(shape, generator=draws, dtype=torch.float64)
        found.append(Layer(deviation * weight, multiplier))
    return found


def passed(layers: list[Layer], x_TI: Tensor, y_T1: Tensor) -> Pass:
    """A pass, with the gradients of half the sum of squared errors over the rows."""
    inputs, outputs = [x_TI], []
    for layer in layers:
        plain = inputs[-1] @ layer.weight_OI.T
        outputs.append((layer.multiplier * plain).requires_grad_())
        inputs.append(outputs[-1].tanh())
    loss = (outputs[-1] - y_T1).square().sum() / 2
    errors = torch.autograd.grad(loss, outputs)
    return Pass([each.detach() for each in inputs], outputs, errors)


def movement(made: Made, step: Step, width: int, seed: int) -> float:
    """Root mean square by which the last hidden layer moves over the training."""
    draws = generator(seed, "width", width)
    data = generator(seed, "rows")
    x_TI = torch.randn(ROWS, INPUTS, generator=data, dtype=torch.float64)
    y_T1 = torch.randn(ROWS, 1, generator=data, dtype=torch.float64)
    layers = made(width, draws)
    before = passed(layers, x_TI, y_T1)
    for _ in range(STEPS):
        layers = step(layers, passed(layers, x_TI, y_T1), width)
    after = passed(layers, x_TI, y_T1)
    moved_TI = after.inputs[2] - before.inputs[2]
    return float(moved_TI.square().mean().sqrt())


def exponent(made: Made, step: Step, seed: int, widths: Sequence[int] = WIDTHS) -> float:
    """How far from level the movement is over widths: the size of its exponent."""
    moves = [movement(made, step, width, seed) for width in widths]
    return abs(slope(widths, moves))
