"""HAWQ: more bits for the matrices at which the loss bends most, under a budget; every expert is a matrix of its own.

**Equation:** V2: Omega_ub = max(Tr(H_u), 0) / n_u ||Q_b(W_u) - W_u||^2, the trace by Hutchinson: mean over draws of
    v_u^T (H v)_u, v in {-1, 1}. V1: the largest eigenvalue of H_u by power iteration in place of the trace. Widths:
    min sum Omega_ub within a mean of b bits per weight, by an integer program.
**Shapes:** W_u [O, I] with n_u numbers; H_u [n_u, n_u], never built.
**Reference:** Dong et al. 2019 (1911.03852), equations 5 and 6; HAWQ, Dong et al. 2019 (1905.03696), algorithm 1.
**Differs:** weights only. H v by central differences of gradients in float64. V1 orders layers and leaves the choice to
    a person and to fine-tuning; here its eigenvalue takes the trace's place in the program.
**Fails when:** the model is far from a minimum: the second-order term says little there. An expert that no token of the
    text visits has no curvature and gets the fewest bits.
**Cost:** 2 gradients a draw (V1: 2 a step and matrix); bits as budgeted, with 16 / G for scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision._allocation import allocate
from mixwell.precision._parts import (
    Coded,
    chosen,
    group_width,
    joined,
    matrices,
    named,
    nearest,
    quantised_example,
    rounded,
    with_codes,
)
from mixwell.precision._statistics import calibrated

NUDGE = 1e-5  # of the differences, beside weights of some hundredths to some units
Place = tuple[str, int | None]  # a weight's name, and the expert where it is a stack


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of HAWQ."""

    bits_per_weight: float = 4.0  # the budget: mean bits of codes, scales apart
    widths: tuple[int, ...] = (2, 3, 4, 8)  # to choose from, each 2 to 8
    measure: Literal["trace", "eigenvalue"] = "trace"  # of the curvature: V2's, V1's
    draws: int = 16  # of v for the trace; steps of power iteration at most
    group_size: int = 64  # numbers of a row that share a scale; 0: the whole row
    tokens: int = 4096  # of calibration text
    max_kl_nats: float = 1.0  # promised: mean KL per token of the logits before and after, above 0

    def __post_init__(self) -> None:
        check_least(self, tokens=1, draws=1, group_size=0)
        check_above(self, max_kl_nats=0)
        if not self.widths or not all(2 <= width <= 8 for width in self.widths):
            raise ValueError(f"widths is {self.widths}; expected some of 2 to 8")
        if self.bits_per_weight < min(self.widths):
            raise ValueError(f"bits_per_weight is {self.bits_per_weight}; expected at least {min(self.widths)}, the "
                             "smallest of widths")


def needs(config: Config) -> Needs:
    """Text, for the loss."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


class Curvature:
    """Products with the Hessian of the mean cross-entropy over calibration text, by some weights of a model."""

    def __init__(self, checkpoint: Checkpoint, names: list[str], calibration: Inputs) -> None:
        self.checkpoint, self.calibration = checkpoint, calibration
        self.at = {name: checkpoint.tensors[name].double() for name in names}

    def times(self, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """H v for v in `direction`, which is 0 for weights that it leaves out."""
        above = self._gradient(direction, NUDGE)
        below = self._gradient(direction, -NUDGE)
        found = {}
        for name in self.at:
            apart = above[name] - below[name]
            found[name] = apart / (2 * NUDGE)
        return found

    def _gradient(self, direction: Mapping[str, Tensor], step: float) -> Mapping[str, Tensor]:
        moved = dict(self.at)
        for name, along in direction.items():
            move = step * along
            moved[name] = moved[name] + move
        found = self.calibration.slopes(self.checkpoint, moved)
        return next(iter(found))


def traces(curvature: Curvature, places: list[Place], draws: int, generator: torch.Generator) -> Tensor:
    """Tr(H_u) of each matrix [U], by Hutchinson; what one draw says of another matrix has mean zero."""
    total_U = torch.zeros(len(places), dtype=torch.float64)
    for _ in range(draws):
        signs = {name: _signs(value, generator) for name, value in curvature.at.items()}
        product = curvature.times(signs)
        found = [_dot(signs, product, place) for place in places]
        own_U = torch.tensor(found, dtype=torch.float64)
        total_U += own_U
    return total_U / draws


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    coins = torch.randint(0, 2, like.shape, generator=generator)
    return coins.double() * 2 - 1


def _part(tensors: Mapping[str, Tensor], place: Place) -> Tensor:
    name, expert = place
    return tensors[name] if expert is None else tensors[name][expert]


def _dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor], place: Place) -> float:
    products = _part(one, place) * _part(other, place)
    return float(products.sum())


def largest_eigenvalue(curvature: Curvature, place: Place, steps: int, generator: torch.Generator) -> float:
    """The eigenvalue of H_u of largest magnitude, by power iteration until it moves by less than a thousandth."""
    name, expert = place
    vector = torch.zeros_like(curvature.at[name])
    own = vector if expert is None else vector[expert]
    own.copy_(torch.randn(own.shape, generator=generator))
    own /= own.norm()
    value = 0.0
    for _ in range(steps):
        product = _part(curvature.times({name: vector}), place)
        before, value = value, float((own * product).sum())
        length = product.norm()
        if not float(length) or abs(value - before) < 1e-3 * (abs(before) + 1e-6):
            break
        own.copy_(product / length)
    return value


def curvatures(curvature: Curvature, places: list[Place], config: Config, generator: torch.Generator) -> Tensor:
    """How much the loss bends at each matrix [U], at least 0."""
    if config.measure == "trace":
        return traces(curvature, places, config.draws, generator).clamp_min(0)
    found = []
    for place in places:
        value = largest_eigenvalue(curvature, place, config.draws, generator)
        found.append(abs(value))
    return torch.tensor(found, dtype=torch.float64)


def harms(weights: list[Tensor], bends_U: Tensor, config: Config) -> Tensor:
    """Omega [U, B] of matrices and their traces or eigenvalues."""
    rows = []
    for weight, bend in zip(weights, bends_U.tolist()):
        mean = bend / weight.numel()
        errors = [_squared_error(weight, width, config) for width in config.widths]
        rows.append([mean * error for error in errors])
    return torch.tensor(rows, dtype=torch.float64)


def _squared_error(weight: Tensor, bits: int, config: Config) -> float:
    change = rounded(weight, bits, config.group_size, True) - weight.double()
    squares = change.square()
    return float(squares.sum())


def _chosen_bits(checkpoint: Checkpoint, places: list[Place], bends_U: Tensor, config: Config) -> list[int]:
    weights = [_part(checkpoint.tensors, place) for place in places]
    harm_UB = harms(weights, bends_U, config)
    counts_U = torch.tensor([weight.numel() for weight in weights], dtype=torch.float64)
    widths_B = torch.tensor(config.widths, dtype=torch.float64)
    size_UB = counts_U[:, None] * widths_B
    budget = config.bits_per_weight * float(counts_U.sum())
    choice = allocate(harm_UB, size_UB, budget)
    return [config.widths[place] for place in choice]


def _encoded(weight: Tensor, bits: list[int], config: Config) -> Coded:
    """A matrix, or a stack with the bits of each expert."""
    each = zip(matrices(weight), bits)
    parts = [nearest(own, width, config.group_size, True) for (_, own), width in each]
    return joined(weight, parts)


@method(
    title="HAWQ: bits by the curvature of the loss",
    paper=("HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks",
           "HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision"),
    year=2019,
    tags={"codes", "calibrated"},
)
def hawq(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose matrices, experts apart, have bits by their curvature. `generator` draws directions.

    Raises `MixwellError` where nothing of the text bends the loss, and as `precision.integers`.
    """
    names = chosen(checkpoint, False)
    for name in names:
        named(name, group_width, checkpoint.tensors[name], config.group_size)  # before the curvature is paid for
    places = [(name, expert) for name in names for expert, _ in matrices(checkpoint.tensors[name])]
    curvature = Curvature(checkpoint, names, calibration)
    bends_U = curvatures(curvature, places, config, generator)
    if not bool((bends_U > 0).any()):
        raise MixwellError("the loss bends at no matrix; hand in a trained model, or more text (tokens).")
    bits = named("bits_per_weight", _chosen_bits, checkpoint, places, bends_U, config)
    by_name: dict[str, list[int]] = {name: [] for name in names}
    for (name, _), width in zip(places, bits):
        by_name[name].append(width)
    made = {}
    for name, own in by_name.items():
        weight = checkpoint.tensors[name]
        made[name] = _encoded(weight, own, config)
    record = calibrated(checkpoint, calibration)
    record["bits"] = by_name
    return with_codes(checkpoint, made, record=record)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    config = Config(group_size=8, tokens=72, draws=2)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
