"""Learned rounding: gradient descent decides for each weight whether it goes up or down.

**Equation:** W' = s clamp(floor(W / s) + h(V), -L, L), h = clamp(1.2 sigmoid(V) - 0.1, 0, 1), V such that h(V) =
    W / s - floor(W / s) at first. Minimise tr(D H D^T) / O + lambda sum (1 - |2 h - 1|^beta), D = W' - W, H = 2 / n
    sum x x^T; beta falls linearly from 20 to 2 behind a warm-up without the second term. At last h = [V >= 0].
**Shapes:** W and V [O, I], s [O, I / G], H [I, I]; each expert of a stack by itself.
**Reference:** Yvinec et al. 2023 (2308.07662), who study it; the rounding is that of Nagel et al. 2020 (2004.10568),
    equations 21 to 25.
**Differs:** one matrix at a time, on inputs of the model with full weights; the squared error of all text by its second
    moments in place of batches, lambda times their mean diagonal and the mean s^2, so that it has no unit. Rounding
    alone is learned, not biases or grids; every expert meets every token.
**Fails when:** a weight should move by more than a step, as GPTQ lets it.
**Cost:** O(O I^2) a step and matrix; bits as precision.integers.
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
from mixwell.precision._parts import (
    Coded,
    Grid,
    check_bits,
    chosen,
    each_coded,
    grid_of,
    grouped,
    on_grid,
    quantised_example,
    top,
)
from mixwell.precision._rounding import beta_at, share_up, start, undecided
from mixwell.precision._statistics import by_moments


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of learned rounding."""

    bits: int = 4  # 2 to 8
    group_size: int = 64  # numbers of a row that share a scale; 0: the whole row
    steps: int = 400  # of Adam on each matrix
    lr: float = 0.02  # of V, above 0
    weight: float = 0.01  # lambda, at least 0
    warm_up: float = 0.2  # share of the steps without the second term, 0 to below 1
    tokens: int = 16_384  # of calibration text
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_bits(self)
        check_least(self, tokens=1, steps=1, weight=0)
        check_above(self, max_kl_nats=0, lr=0)
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up is {self.warm_up}; expected 0 to below 1")


def needs(config: Config) -> Needs:
    """Text, for the inputs of every weight."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def learn(groups: Tensor, grid: Grid, moments_II: Tensor, config: Config) -> Tensor:
    """V of a matrix in groups [O, C, G] on its grid, after descent."""
    scale = grid.real.unsqueeze(-1)
    floor = (groups / scale).floor()
    V = start(groups / scale - floor).requires_grad_()
    unit = moments_II.diagonal().mean() * scale.square().mean()
    optimiser = torch.optim.Adam([V], lr=config.lr)
    most = top(config.bits)
    for step in range(config.steps):
        h = share_up(V)
        rounded = (floor + h).clamp(-most, most)
        change = (rounded * scale - groups).flatten(-2)
        outputs = change @ moments_II
        loss = (outputs * change).sum()
        beta = beta_at(step, config.steps, config.warm_up)
        if beta is not None:
            loss = loss + config.weight * unit * undecided(h, beta)
        (V.grad,) = torch.autograd.grad(loss, [V])
        optimiser.step()
    return V.detach()


def encode(weight: Tensor, moments_II: Tensor, config: Config) -> Coded:
    """The codes of a matrix [O, I] whose inputs have these second moments."""
    wide = weight.double()
    groups = grouped(wide, config.group_size)
    grid = grid_of(groups, config.bits, True)
    with torch.enable_grad():
        V = learn(groups, grid, moments_II.double(), config)
    most = top(config.bits)
    steps = (groups / grid.real.unsqueeze(-1)).floor()
    up = V >= 0
    numbers = (steps + up).clamp(-most, most)
    codes = numbers + most + 1
    return on_grid(weight, grid, codes.to(torch.uint8))


def encode_all(weight: Tensor, moments: Tensor, config: Config) -> Coded:
    """The codes of a matrix, or of each expert of a stack; moments [I, I] are all experts', [E, I, I] one for each."""
    return each_coded(weight, moments, 2, partial(encode, config=config))


@method(title="Learned rounding", paper="Gradient-Based Post-Training Quantization: Challenging the Status Quo",
        year=2023, tags={"codes", "calibrated"})
def learned_rounding(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                     calibration: Inputs) -> Checkpoint:
    """A checkpoint whose large weights are rounded as was learned. Draws nothing from `generator`.

    Raises `MixwellError` as `precision.integers`.
    """
    names = chosen(checkpoint, False)
    return by_moments(checkpoint, names, calibration, lambda weight, moments: encode_all(weight, moments, config))


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    config = Config(group_size=8, tokens=72, steps=5)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
