"""Subtractive mixtures: squared circuits with negative weights fit what additive ones of the same size cannot.

Paper: Subtractive Mixture Models via Squaring: Representation and Learning.
Tried: 2,000 points on a ring of radius 1 with noise 0.1, two Gaussian components as in the paper's first figure, 600
steps of Adam from each of five starts, which both sides share, the one of the least training loss kept, learning rate
tuned; negative log-likelihood on fresh points, real weights squared against added positive weights. Beside it: squares
of positive weights. Against it: a loss that is no smaller.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator
from mixwell.density.circuits.squared import Config, SquaredCircuit, train

Kind = Literal["subtractive", "squared", "additive"]
STARTS = 5


def ring(count: int, draws: torch.Generator) -> Tensor:
    """Points (count, 2) near the unit circle."""
    angle = 2 * math.pi * torch.rand(count, generator=draws)
    radius = 1 + 0.1 * torch.randn(count, generator=draws)
    way = torch.stack([angle.cos(), angle.sin()], 1)
    return radius[:, None] * way


def trained(x: Tensor, kind: Kind, lr: float, seed: int) -> SquaredCircuit:
    """A circuit of two components after training from the start of this seed."""
    config = Config(n_components=2, kind=kind)
    model = SquaredCircuit(2, config, generator(seed, "model"))
    model.start_at(x, generator(seed, "start"))
    batches = generator(seed, "batches")
    for _ in train(model, x, steps=600, lr=lr, generator=batches, batch=512):
        pass
    return model


@torch.no_grad()
def loss_of(model: SquaredCircuit, x: Tensor) -> float:
    """Mean negative log-likelihood in nats."""
    return -float(model(x).mean())


def loss(bench: Bench, seed: int, *, kind: Kind, lr: float) -> float:
    """Held-out loss of the start that fits its own points best."""
    draws = generator(seed, "ring")
    x, fresh = ring(2000, draws), ring(4000, draws)
    models = [trained(x, kind, lr, STARTS * seed + start) for start in range(STARTS)]
    fitting = min(models, key=lambda model: loss_of(model, x))
    return loss_of(fitting, fresh)


SIDES = {"method": "subtractive", "baseline": "additive", "squares of positive weights": "squared"}

CLAIM = Claim("Squared mixtures with negative weights need fewer components.", "held-out loss in nats",
              sides={name: Side(loss, {"kind": kind}, {"lr": (0.01, 0.03, 0.1)}) for name, kind in SIDES.items()})
