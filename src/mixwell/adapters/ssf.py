"""SSF: each output of a layer scaled and shifted by learnt numbers that fold into the layer.

**Equation:** y = gamma * (W x + b) + beta; folded, W' = diag(gamma) W and b' = gamma * b + beta.
**Shapes:** W [O, I]; gamma, beta [O]; of a stack gamma [E, O].
**Reference:** Lian et al. 2022 (2210.08823), section 3.2.
**Differs:** a layer without a bias has gamma alone, since beta could not be folded there. Only what follows a product
    is scaled, not a norm. The start is gamma = 1 and beta = 0 instead of draws near them, so it is exact.
**Fails when:** the change that is needed mixes channels. A gamma of exactly 0 loses what it scaled.
**Cost:** one multiplication and one addition a channel; 2 O numbers a target, nothing once folded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import WeightAdapter, example_target
from mixwell.adapters.targets import Target
from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of SSF."""

    shift: bool = True  # whether layers with a bias have beta, too


@method(
    title="SSF, scale and shift",
    paper="Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
    year=2022,
    tags={"matrix", "experts"},
)
class SSF(WeightAdapter):
    """Learnt factors and shifts; see the module's card."""

    parts = ("scale", "shift")
    targets = ("all-linear",)

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        ones = torch.ones(*target.stack, target.outputs, device=generator.device)
        self.scale = nn.Parameter(ones)
        self.register_parameter("shift", None)
        biased = getattr(target.owner, "bias", None) is not None
        if config.shift and biased:
            zeros = torch.zeros_like(ones)
            self.shift = nn.Parameter(zeros)

    def after(self, x: Tensor, y: Tensor, weight: Any, scale: Tensor, shift: Tensor | None = None) -> Tensor:
        """gamma * y; beta comes with the bias."""
        return y * scale.to(y.dtype)

    def bias(self, bias: Tensor, weight: Any, scale: Tensor, shift: Tensor | None = None) -> Tensor:
        """gamma * b + beta."""
        scaled = bias * scale.to(bias.dtype)
        return scaled if shift is None else scaled + shift.to(bias.dtype)

    def delta(self, weight: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
        """W with its rows scaled by gamma - 1."""
        more = scale - 1
        return weight * more[:, None]


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of six inputs and five outputs."""
    return {"target": example_target(generator), "config": Config()}
