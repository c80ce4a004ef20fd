"""Norms alone: every weight stays as it is, the gains and shifts of the norms are trained.

**Equation:** y = gamma * n(x) + beta, n the norm without them; gamma and beta are trained, and nothing else.
**Shapes:** gamma, beta [D] of each norm.
**Reference:** Frankle et al. 2020 (2003.00152), section 3, on networks that never saw data; as tuning of trained ones,
    PEFT's LNTuning.
**Differs:** any norm of the model, not BatchNorm alone; most of a decoder's have no shift. The start is the base's by
    default, and the paper's gamma ~ U(0, 1), beta = 0 with `start: uniform`, which is meant for a model that was built
    and not trained. Weight decay on the gains, which the paper has, is the training's business, and ours has none.
**Fails when:** the frozen weights lack the features: a gain scales what is there.
**Cost:** 2 D numbers a norm; the backward pass goes through the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import example_target
from mixwell.adapters.attached import Attached
from mixwell.adapters.selected import Chosen, Selection, norms_of
from mixwell.core.errors import MixwellError
from mixwell.core.method import method

GAIN = "weight"
OUTPUT = "head."  # begins the names of the output layer's parameters


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of norm-only training."""

    start: Literal["kept", "uniform"] = "kept"  # uniform: gains from U(0, 1), shifts at 0, as in the paper
    shifts: bool = True  # whether beta is trained, too
    output: bool = False  # whether the output layer is


@method(
    title="Norms alone",
    paper="Training BatchNorm and Only BatchNorm: On the Expressive Power of Random Features in CNNs",
    year=2020,
    tags={"matrix"},
)
class Norms(Selection):
    """Trains the norms; see the module's card."""

    @classmethod
    def choose(cls, model: nn.Module, names: Sequence[str], config: Config, generator: torch.Generator) -> Chosen:
        """The gains, the shifts and the output layer, as far as the options say."""
        found = norms_of(model, names)
        if not found:
            raise MixwellError("the model has no norm among the targets, so there is nothing to train.")
        gains = [name for name in found if _is_gain(name)]
        shifts = [name for name in found if name not in gains and config.shifts]
        output = [name for name in names if name.startswith(OUTPUT) and config.output]
        start: dict[str, Tensor] = {}
        if config.start == "uniform":
            start = {name: _drawn(model.get_parameter(name), generator) for name in gains}
            start |= {name: torch.zeros_like(model.get_parameter(name)) for name in shifts}
        return Chosen((*gains, *shifts, *output), start=start)


def _is_gain(name: str) -> bool:
    return name.rpartition(".")[2] == GAIN


def _drawn(gain: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(gain.shape, generator=generator, device=generator.device)


def switched_off(there: Attached, below: float = 0.01) -> float:
    """Share of the trained gains that are smaller than `below`: features that the training did without."""
    vectors = {name: value.detach() for name, value in there.trained.items() if value.ndim == 1}
    gains = [value for name, value in vectors.items() if _is_gain(name)]
    together = torch.cat(gains)
    small = together.abs() < below
    return float(small.float().mean())


def example(generator: torch.Generator) -> dict[str, Any]:
    """The gains of a model, as they are."""
    return {"target": example_target(generator), "config": Config()}
