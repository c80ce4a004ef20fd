"""Second-order steps that move features alike at every width: K-FAC and Shampoo with exponents of width.

**Equation:** Delta W = -eta n^-c (B + rho tr B)^-e_B G (A + rho tr A)^-e_A, A = mean h h^T of the layer's inputs,
    B = mean d d^T of the errors at its outputs. c = e_B - 1 of the first layer, e_B - e_A between, 1 - e_A of the last;
    starts of deviation 1, n^-1/2, n^-1. K-FAC: e_A = e_B = 1, all c = 0; Shampoo: both 1/2; gradient descent: both 0.
**Shapes:** G [O, I], inputs h [T, I], errors d [T, O] of T examples; the step [O, I].
**Reference:** Ishikawa and Karakida 2024 (2312.12226).
**Differs:** damping by the trace alone, for rho n^k with k by layer: a trace is of the same order in n. Factors are of
    one batch, without running means; Shampoo's L^-1/4 G R^-1/4 is its form in A and B, as in the paper.
**Fails when:** the output starts at zero under K-FAC: the last layer then takes the whole step and features rest. Fixed
    damping, which width outgrows.
**Cost:** O(T (I^2 + O^2) + I^3 + O^3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """The rule's powers and damping; `ValueError` for a value out of range."""

    inputs: float = 1.0  # e_A, 0 to 1
    outputs: float = 1.0  # e_B, 0 to 1
    damping: float = 1e-3  # rho, as a share of the factor's trace, above 0

    def __post_init__(self) -> None:
        if not (0 <= self.inputs <= 1 and 0 <= self.outputs <= 1):
            raise ValueError(f"inputs={self.inputs}, outputs={self.outputs}; expected powers of 0 to 1")
        if not self.damping > 0:
            raise ValueError(f"damping is {self.damping}; expected a number above 0")


class Exponents(NamedTuple):
    """Of width, for one layer: the start's deviation is n^-start, its learning rate eta n^-rate."""

    start: float
    rate: float


def exponents(config: Config) -> dict[str, Exponents]:
    """Of the `first` layer, those `between`, and the `last`."""
    first = Exponents(0.0, config.outputs - 1)
    between = Exponents(0.5, config.outputs - config.inputs)
    last = Exponents(1.0, 1 - config.inputs)
    return {"first": first, "between": between, "last": last}


@method(title="Second order at every width", year=2024,
        paper="On the Parameterization of Second-Order Optimization Effective Towards the Infinite Width")
def second_order_width(gradient_OI: Tensor, inputs_TI: Tensor, errors_TO: Tensor, config: Config) -> Tensor:
    """The preconditioned gradient [O, I] of one layer, to be scaled by its rate; shapes apart raise `MixwellError`."""
    wanted = (errors_TO.shape[-1], inputs_TI.shape[-1])
    came = tuple(gradient_OI.shape)
    if came != wanted:
        raise MixwellError(f"the gradient has the shape {came}; inputs and errors say {wanted}.")
    left_OO = damped_power(errors_TO, config.outputs, config.damping)
    right_II = damped_power(inputs_TI, config.inputs, config.damping)
    return left_OO @ gradient_OI @ right_II


def damped_power(rows_TD: Tensor, power: float, damping: float) -> Tensor:
    """(F + rho tr F)^-power of the factor F = mean x x^T: [D, D]; rows of zeros give the identity."""
    T = len(rows_TD)
    factor_DD = rows_TD.T @ rows_TD / T
    trace = factor_DD.trace()
    if power == 0 or not trace > 0:
        one_D = torch.ones_like(rows_TD[0])
        return torch.diag(one_D)
    values_D, vectors_DD = torch.linalg.eigh(factor_DD)
    lifted_D = values_D.clamp_min(0) + damping * trace
    scaled_DD = vectors_DD * lifted_D**-power
    return scaled_DD @ vectors_DD.T


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer from five units to three, and its gradient over forty examples."""
    inputs_TI = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    errors_TO = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    gradient_OI = errors_TO.T @ inputs_TI / 40
    return {"gradient_OI": gradient_OI, "inputs_TI": inputs_TI, "errors_TO": errors_TO, "config": Config()}
