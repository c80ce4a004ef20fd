"""Bits for each expert by how often it is chosen, how much it then counts, and what rounding does to it.

**Equation:** phi_e = share of tokens that the router sends to e, w_e = mean over all tokens of its weight; imp_e =
    phi_e^alpha w_e^beta over the sum of the same over the layer's experts, 1 for what every token passes; eps_ub =
    |x (Q_b(W_u) - W_u)^T|_F / |x W_u^T|_F over the text; min sum_u imp_u eps_ub^gamma within the budget, exactly.
**Shapes:** W_u [O, I], x [T, I]; phi, w, imp [E]; eps [U, B].
**Reference:** Huang et al. 2024 (2410.06270), section 3.2, equations 3 to 5, and the authors' code.
**Differs:** one program over all layers, attention and dense blocks among them, under bits or bytes of the whole
    model, where theirs is one a layer of experts with attention at 4 bits; an expert's two matrices have bits of their
    own, and eps is a share of the matrix's own output (theirs: of the layer's). Rounding to nearest, without GPTQ
    behind it. Their code raises eps to alpha by a slip; the paper's gamma is meant here.
**Fails when:** all experts are chosen alike: what is left are the errors. The router is not trained: shares of a fresh
    one say nothing of what matters. An expert that no token of the text visits gets the fewest bits.
**Cost:** two passes of the text, and second moments I^2 of every matrix's inputs in memory; bits as budgeted, with
    16 / G for scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_not_negative
from mixwell.mixing.calibration import Inputs, Needs
from mixwell.precision import bits
from mixwell.precision._divergence import tokens_of
from mixwell.precision._parts import quantised_example
from mixwell.precision._statistics import output_error, second_moments
from mixwell.precision.bits import Budget, Place, Sensitivities, at_width, names_of, of_inputs, part, places_of


@dataclass(frozen=True, kw_only=True)
class Config(Budget):
    """Options of bits by expert."""

    alpha: float = 1.0  # power of the share of tokens, 0 or more
    beta: float = 1.5  # power of the mean weight, 0 or more
    gamma: float = 2.0  # power of the relative error, above 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "alpha", "beta")
        if not self.gamma > 0:
            raise ValueError(f"gamma is {self.gamma}; expected a number above 0")


def needs(config: Config) -> Needs:
    """Text, for the router and for the errors."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """What the receipt must show."""
    return {"kl_nats": config.max_kl_nats}


def importances(counts_E: Tensor, gates_E: Tensor, tokens: int, config: Config) -> Tensor:
    """imp [E] of a layer's experts, float64: together 1. Raises ValueError where no expert counts for anything."""
    shares_E = counts_E.double() / tokens
    weights_E = gates_E.double() / tokens
    raw_E = shares_E**config.alpha * weights_E**config.beta
    total = float(raw_E.sum())
    if not total > 0:
        raise ValueError("no expert is chosen with a weight above 0; hand in other text, or a trained model")
    return raw_E / total


def errors(checkpoint: Checkpoint, places: Sequence[Place], calibration: Inputs, config: Config) -> Tensor:
    """eps [U, B] of every matrix and width, float64; 0 where the matrix gives nothing but zeros."""
    moments = second_moments(checkpoint, names_of(places), calibration)
    rows = []
    for place in places:
        weight = part(checkpoint.tensors, place)
        own = of_inputs(moments, place, 2)
        rows.append(_relative(weight.double(), own, config))
    share_UB = torch.tensor(rows, dtype=torch.float64)
    return share_UB.sqrt()


def _relative(weight: Tensor, moments: Tensor, config: Config) -> list[float]:
    """Squared error of the outputs over their squares, at each width."""
    right = output_error(weight, moments)
    found = []
    for width in config.widths:
        change = at_width(weight, width, config) - weight
        wrong = output_error(change, moments)
        found.append(wrong / right if right else 0.0)
    return found


def _importance(places: Sequence[Place], checkpoint: Checkpoint, calibration: Inputs, config: Config) -> Tensor:
    """imp [U] of every matrix."""
    tokens = tokens_of(calibration)
    gates = calibration.gates(checkpoint)
    by_layer = {}
    for layer, counts_E in calibration.routed(checkpoint).items():
        by_layer[layer] = importances(counts_E, gates[layer], tokens, config)
    found = []
    for name, expert in places:
        count = len(checkpoint.tensors[name])
        own = 1.0 if expert is None else _of_expert(name, expert, count, by_layer)
        found.append(own)
    return torch.tensor(found, dtype=torch.float64)


def _of_expert(name: str, expert: int, count: int, by_layer: dict[int, Tensor]) -> float:
    """imp of one of the `count` experts of a stack."""
    layer = int(name.split(".")[1])
    own_E = by_layer.get(layer, torch.empty(0))
    if len(own_E) != count:
        raise MixwellError(f"{name}: the router of layer {layer} chooses among {len(own_E)} experts, the stack has "
                           f"{count}; how often each is chosen is not known. precision.hawq asks no router.")
    return float(own_E[expert])


def sensitivities(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
                  calibration: Inputs) -> Sensitivities:
    """imp eps^gamma of every matrix and width. Draws nothing from `generator`."""
    places = places_of(checkpoint, config)
    eps_UB = errors(checkpoint, places, calibration, config)
    imp_U = _importance(places, checkpoint, calibration, config)
    harm_UB = imp_U[:, None] * eps_UB**config.gamma
    return bits.sensitivities(checkpoint, places, harm_UB, calibration)


@method(
    title="Bits by expert: routing times error",
    paper="Mixture Compressor for Mixture-of-Experts LLMs Gains More",
    year=2024,
    tags={"codes", "calibrated", "budgeted"},
)
def expert_bits(checkpoint: Checkpoint, config: Config, generator: torch.Generator, calibration: Inputs) -> Checkpoint:
    """A checkpoint whose experts have bits by how much they are used. Draws nothing from `generator`.

    Raises `MixwellError` as `precision.integers`, and where the budget is too small.
    """
    found = sensitivities(checkpoint, config, generator, calibration)
    return bits.allotted(checkpoint, found, config)


def example(generator: torch.Generator) -> dict[str, Any]:
    """One layer's mixture."""
    config = Config(group_size=8, tokens=72)
    return {"checkpoint": quantised_example(generator), "config": config, "generator": generator}
