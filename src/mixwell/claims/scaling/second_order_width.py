"""Second order at every width: with the right exponents K-FAC moves features alike, however wide the network is.

Paper: On the Parameterization of Second-Order Optimization Effective Towards the Infinite Width.
Tried: networks of two hidden layers and widths of 32 to 256, ten steps of K-FAC on 32 rows; how the movement of the
second hidden layer follows width, as an exponent. The paper's starts and rates against the standard starts, whose last
layer is wider by the square root of width, at one rate for all layers. Beside: the same for Shampoo. Against it: an
exponent that is not nearer to 0 by a quarter.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.scaling._widths import FEWER, Layer, Pass, drawn, exponent
from mixwell.scaling.second_order_width import Config, Exponents, exponents, second_order_width

RATE = 0.01
KFAC, SHAMPOO = Config(), Config(inputs=0.5, outputs=0.5)
STANDARD = (Exponents(0.0, 0.0), Exponents(0.5, 0.0), Exponents(0.5, 0.0))
PLAIN = (1.0, 1.0, 1.0)  # multipliers

Scales = Sequence[Exponents]


def made(scales: Scales, width: int, draws: torch.Generator) -> list[Layer]:
    """A network with these starts."""
    deviations = [width**-scale.start for scale in scales]
    return drawn(deviations, PLAIN, width, draws)


def step(config: Config, scales: Scales, before: list[Layer], seen: Pass, width: int) -> list[Layer]:
    """A preconditioned step of every layer."""
    after = []
    for layer, x, error, scale in zip(before, seen.inputs, seen.errors, scales):
        gradient = error.T @ x / len(x)
        change = second_order_width(gradient, x, error, config)
        rate = RATE * width**-scale.rate
        after.append(layer._replace(weight_OI=layer.weight_OI - rate * change))
    return after


def apart(config: Config, scales: Scales, seed: int) -> float:
    """The size of the exponent."""
    build = functools.partial(made, scales)
    move = functools.partial(step, config, scales)
    return exponent(build, move, seed, FEWER)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Sizes of the exponents of both rules, with their own scales and the standard ones."""
    found = {}
    for name, standard, config in (("method", "baseline", KFAC), ("Shampoo", "Shampoo, standard", SHAMPOO)):
        own = list(exponents(config).values())
        found[name] = apart(config, own, seed)
        found[standard] = apart(config, STANDARD, seed)
    return found


CLAIM = Claim("With the exponents of its kind K-FAC moves features alike at every width.",
              "size of the exponent by which the movement of features follows width", at_least=0.25)
