"""Subtractive mixtures: squared circuits with negative weights fit what additive ones of the same size cannot.

Paper: Subtractive Mixture Models via Squaring: Representation and Learning.
Tried: 2,000 points on a ring of radius 1 with noise 0.1, two Gaussian components as in the paper's first figure, 600
steps of Adam from the same start; negative log-likelihood on fresh points, real weights squared against added positive
weights. Beside it: squares of positive weights, and all of them with eight components. Against it: a loss that is no
smaller.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from mixwell.claims._judging import beside
from mixwell.claims._series import by_seed
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.density.circuits.squared import Config, SquaredCircuit, train

NOTE = ("Behind with two seeds of three at two components and on average at eight; squares with positive "
        "weights do about as well as sums. Gradient descent from random starts seldom finds the cancelling "
        "pairs that a planted start holds.")
Kind = Literal["subtractive", "squared", "additive"]
KINDS = get_args(Kind)


def ring(count: int, draws: torch.Generator) -> Tensor:
    """Points (count, 2) near the unit circle."""
    angle = 2 * math.pi * torch.rand(count, generator=draws)
    radius = 1 + 0.1 * torch.randn(count, generator=draws)
    way = torch.stack([angle.cos(), angle.sin()], 1)
    return radius[:, None] * way


def loss(seed: int, kind: Kind, components: int) -> float:
    """Held-out loss in nats."""
    draws = generator(seed, "ring")
    x, fresh = ring(2000, draws), ring(4000, draws)
    config = Config(n_components=components, kind=kind)
    model = SquaredCircuit(2, config, generator(seed, "model"))
    model.start_at(x, generator(seed, "start"))
    for _ in train(model, x, steps=600, lr=0.03, generator=draws, batch=512):
        pass
    with torch.no_grad():
        log = model(fresh)
    return -float(log.mean())


def claim(bench: Bench) -> Evidence:
    """Held-out loss of subtracting against adding."""
    few = {kind: by_seed(bench, loss, kind, 2) for kind in KINDS}
    many = {f"{kind}, eight components": by_seed(bench, loss, kind, 8) for kind in KINDS}
    evidence = weigh("Squared mixtures with negative weights need fewer components.", "held-out loss in nats",
                     few["subtractive"], few["additive"], note=NOTE)
    return beside(evidence, **{"squared, positive": few["squared"]}, **many)
