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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision import bits
from mixwell.precision._parts import quantised_example
from mixwell.precision.bits import Budget, Place, Sensitivities, at_width, names_of, part, places_of

NUDGE = 1e-5  # of the differences, beside weights of some hundredths to some units


@dataclass(frozen=True, kw_only=True)
class Config(Budget):
    """Options of HAWQ."""

    measure: Literal["trace", "eigenvalue"] = "trace"  # of the curvature: V2's, V1's
    draws: int = 16  # of v for the trace; steps of power iteration at most

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, draws=1)


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


def traces(curvature: Curvature, places: Sequence[Place], draws: int, generator: torch.Generator) -> Tensor:
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


def _dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor], place: Place) -> float:
    products = part(one, place) * part(other, place)
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
        product = part(curvature.times({name: vector}), place)
        before, value = value, float((own * product).sum())
        length = product.norm()
        if not float(length) or abs(value - before) < 1e-3 * (abs(before) + 1e-6):
            break
        own.copy_(product / length)
    return value


def curvatures(curvature: Curvature, places: Sequence[Place], config: Config, generator: torch.Generator) -> Tensor:
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


def _squared_error(weight: Tensor, width: int, config: Config) -> float:
    change = at_width(weight, width, config) - weight.double()
    squares = change.square()
    return float(squares.sum())


def sensitivities(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                  calibration: Inputs) -> Sensitivities:
    """Omega of every matrix and width. Raises `MixwellError` where nothing of the text bends the loss."""
    places = places_of(checkpoint, config)
    curvature = Curvature(checkpoint, names_of(places), calibration)
    bends_U = curvatures(curvature, places, config, generator)
    if not bool((bends_U > 0).any()):
        raise MixwellError("the loss bends at no matrix; hand in a trained model, or more text (tokens).")
    weights = [part(checkpoint.tensors, place) for place in places]
    harm_UB = harms(weights, bends_U, config)
    return bits.sensitivities(checkpoint, places, harm_UB, calibration)


@method(
    title="HAWQ: bits by the curvature of the loss",
    paper=("HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks",
           "HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision"),
    year=2019,
    tags={"codes", "calibrated", "budgeted"},
)
def hawq(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose matrices, experts apart, have bits by their curvature. `generator` draws directions.

    Raises `MixwellError` where nothing of the text bends the loss, and as `precision.integers`.
    """
    found = sensitivities(checkpoint, config, generator, calibration)
    return bits.allotted(checkpoint, found, config)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    config = Config(group_size=8, tokens=72, draws=2)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
