"""Feature learning: under the maximal update hidden layers move alike at every width, as kernels they come to rest.

Paper: Feature Learning in Infinite-Width Neural Networks.
Tried: networks of two hidden layers and widths of 64 to 1,024, ten steps of gradient descent on 32 rows; how the
movement of the second hidden layer follows width, as an exponent. The maximal update parametrisation against that of
the tangent kernel. Beside: the standard one at its largest stable rate. Against it: an exponent that is not nearer to 0
by a quarter.
"""

from __future__ import annotations

import functools

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.scaling._widths import ROWS, Layer, Pass, drawn, exponent
from mixwell.scaling.feature_learning import MAXIMAL_UPDATE, STANDARD, TANGENT_KERNEL, Config, layers

RATE = 0.5
SIDES = {"method": MAXIMAL_UPDATE, "baseline": TANGENT_KERNEL, "standard": STANDARD}


def made(config: Config, width: int, draws: torch.Generator) -> list[Layer]:
    """A network in this parametrisation."""
    wanted = layers(config, width, RATE)
    deviations = [layer.deviation for layer in wanted]
    multipliers = [layer.multiplier for layer in wanted]
    return drawn(deviations, multipliers, width, draws)


def step(config: Config, before: list[Layer], seen: Pass, width: int) -> list[Layer]:
    """A step of gradient descent on the mean over the rows."""
    rates = [layer.rate / ROWS for layer in layers(config, width, RATE)]
    after = []
    for layer, x, error, rate in zip(before, seen.inputs, seen.errors, rates):
        gradient = layer.multiplier * error.T @ x
        weight = layer.weight_OI - rate * gradient
        after.append(Layer(weight, layer.multiplier))
    return after


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Sizes of the exponents."""
    found = {}
    for name, config in SIDES.items():
        build, move = functools.partial(made, config), functools.partial(step, config)
        found[name] = exponent(build, move, seed)
    return found


CLAIM = Claim("Under the maximal update features move alike at every width.",
              "size of the exponent by which the movement of features follows width", at_least=0.25)
