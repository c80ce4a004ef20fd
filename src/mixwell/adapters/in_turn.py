"""HiFT: every parameter is trained, one group of layers a step, so that gradients are never there for all at once.

**Equation:** at step t the group t mod k takes one step of the optimiser, all others stay; the learning rate goes on
    once in k steps. k = ceil(n / m) groups of m layers out of n: embeddings, the blocks, norm and head.
**Shapes:** those of the model's parameters.
**Reference:** Liu et al. 2024, HiFT (2401.15207), algorithm 1; misonsky/HiFT.
**Differs:** a group's turn lasts a whole step, micro-batches included; in the release it changes between them. The rate
    goes on after all k groups, also where m does not divide n. Moments stay where the model is instead of being moved
    off the device, so the memory that is saved is that of gradients (in float32) and of what lies below the group.
    A head that is tied to the embedding has the embedding's turn.
**Fails when:** steps are few: each layer is trained in one of k of them. Compare at equal visits, and say so.
**Cost:** gradients of one group; a backward pass down to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from mixwell.adapters._parts import example_target
from mixwell.adapters.selected import Chosen, Selection, layer_of
from mixwell.core.method import method
from mixwell.mixing import check_least

EMBEDDINGS = "embed.", "positions."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of HiFT."""

    layers: int = 1  # m, layers of a group; embeddings count as one, and so do last norm and head together
    order: Literal["up", "down", "random"] = "up"  # from the embeddings, from the head, or shuffled once

    def __post_init__(self) -> None:
        check_least(self, layers=1)


@method(
    title="HiFT, layers in turn",
    paper="HiFT: A Hierarchical Full Parameter Fine-Tuning Strategy",
    year=2024,
    tags={"matrix"},
)
class InTurn(Selection):
    """Trains groups of layers in turn; see the module's card."""

    @classmethod
    def choose(cls, model: nn.Module, names: Sequence[str], config: Config, generator: torch.Generator) -> Chosen:
        """All of them."""
        return Chosen(tuple(names))

    @classmethod
    def turns(cls, names: Sequence[str], config: Config, generator: torch.Generator) -> tuple[tuple[str, ...], ...]:
        """The groups in the order of their turns."""
        groups = grouped(names, config.layers)
        if config.order == "down":
            groups.reverse()
        if config.order == "random":
            order = torch.randperm(len(groups), generator=generator, device=generator.device)
            groups = [groups[place] for place in order.tolist()]
        return tuple(groups)


def grouped(names: Sequence[str], layers: int) -> list[tuple[str, ...]]:
    """The names by groups of so many layers, from the embeddings up to the head."""
    by_layer: dict[float, list[str]] = {}
    for name in names:
        place = _height(name)
        by_layer.setdefault(place, []).append(name)
    heights = sorted(by_layer)
    found = []
    for first in range(0, len(heights), layers):
        together = heights[first : first + layers]
        found.append(tuple(name for height in together for name in by_layer[height]))
    return found


def _height(name: str) -> float:
    """Where a parameter stands: embeddings lowest, the layers by their numbers, the rest above."""
    if name.startswith(EMBEDDINGS):
        return -1
    layer = layer_of(name)
    return math.inf if layer is None else layer


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two layers a turn."""
    return {"target": example_target(generator), "config": Config(layers=2)}
