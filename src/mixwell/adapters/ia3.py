"""(IA)^3: one learnt factor for each output of a layer, or for each input of a feed-forward block's last map.

**Equation:** y = l * (W x + b), or y = W (l * x) + b where a target is one of `inputs`.
**Shapes:** W [O, I]; l [O], of `inputs` [I]; of a stack one for each expert.
**Reference:** Liu et al. 2022 (2205.05638), section 3.3: keys, values, and the hidden activation of the feed-forward.
**Differs:** keys and values stand in one matrix with the queries here, so those have factors, too.
**Fails when:** the change that is needed is no scaling. A factor of exactly 0 loses what it scaled.
**Cost:** one multiplication a channel; O or I numbers a target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import WeightAdapter, example_target
from mixwell.adapters.targets import Target, fits
from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of (IA)^3."""

    inputs: tuple[str, ...] = ("down_proj",)  # patterns of the targets whose inputs are scaled instead of outputs


@method(
    title="(IA)^3",
    paper="Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
    year=2022,
    tags={"matrix", "experts"},
)
class IA3(WeightAdapter):
    """Learnt factors; see the module's card."""

    parts = ("factors",)
    targets = ("qkv", "down_proj")

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        self.maps_input = any(fits(target.name, pattern) for pattern in config.inputs)
        channels = target.inputs if self.maps_input else target.outputs
        ones = torch.ones(*target.stack, channels, device=generator.device)
        self.factors = nn.Parameter(ones)

    def before(self, x: Tensor, factors: Tensor) -> Tensor:
        """l * x where inputs are scaled."""
        return x * factors.to(x.dtype) if self.maps_input else x

    def after(self, x: Tensor, y: Tensor, weight: Any, factors: Tensor) -> Tensor:
        """l * y where outputs are."""
        return y if self.maps_input else y * factors.to(y.dtype)

    def bias(self, bias: Tensor, weight: Any, factors: Tensor) -> Tensor:
        """The bias is scaled with the outputs."""
        return bias if self.maps_input else bias * factors.to(bias.dtype)

    def delta(self, weight: Tensor, factors: Tensor) -> Tensor:
        """W with its columns or rows scaled by l - 1."""
        more = factors - 1
        return weight * (more if self.maps_input else more[:, None])


def example(generator: torch.Generator) -> dict[str, Any]:
    """A layer of six inputs and five outputs."""
    return {"target": example_target(generator), "config": Config()}
