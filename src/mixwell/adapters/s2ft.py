"""S2FT: a few heads and channels are drawn, and of the matrices around them the slices that belong to them are trained.

**Equation:** W[:, c] of an output map for the drawn heads or channels c, W[r, :] of an input map for the rows r that
    make them; the rest of W is frozen. In a decoder: columns of out and down, rows of value and up.
**Shapes:** W [O, I]; of a stack [E, O, I], with channels drawn for each expert.
**Reference:** Yang et al. 2024, S2FT (2412.06289); Infini-AI-Lab/S2FT.
**Differs:** channels are gathered where they stand instead of being permuted to the front of the coupled matrices; the
    numbers are the same, and the model keeps its order. The slice holds the weight's own numbers, so it is trained in
    place; the release trains a difference that starts at 0, which is the same without weight decay. Every expert of a
    stack has as many channels as the others. The rows of value are drawn by its own heads, apart from those of out.
**Fails when:** the change that is needed lies in what feeds the frozen channels.
**Cost:** 2 O K a token for K columns; gradients, moments and files of the slices' size, K kept inputs for backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.adapters._parts import example_target
from mixwell.adapters.selected import Axis, Chosen, Entries, Selection, fused
from mixwell.adapters.targets import EVERY, Target, find
from mixwell.core.errors import MixwellError
from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of S2FT: shares of all heads or channels of the model, of which one at least is drawn."""

    out: float = 0.05  # of the heads that attention's output map reads
    down: float = 0.02  # of the channels that down-projections read
    value: float = 0.0  # of the heads that values are made of
    up: float = 0.0  # of the channels that up-projections make

    def __post_init__(self) -> None:
        shares = {"out": self.out, "down": self.down, "value": self.value, "up": self.up}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; expected a share, 0 to 1")
        if not any(shares.values()):
            raise ValueError("out, down, value and up are all 0; expected a share above 0 of one of them")


@dataclass(frozen=True)
class Family:
    """Heads or channels of one kind at one target: `count` runs of `width` rows or columns from `first` on."""

    target: Target
    axis: Axis
    count: int
    width: int = 1
    first: int = 0

    def indices(self, runs: Tensor) -> Tensor:
        """Rows or columns [K] of some of the runs."""
        begins = self.first + runs * self.width
        inside = torch.arange(self.width, device=runs.device)
        return (begins[:, None] + inside).flatten()


@method(
    title="S2FT, slices of heads and channels",
    paper="S^{2}FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity",
    year=2024,
    tags={"matrix", "experts"},
)
class S2FT(Selection):
    """Trains slices of coupled matrices; see the module's card."""

    @classmethod
    def choose(cls, model: nn.Module, names: Sequence[str], config: Config, generator: torch.Generator) -> Chosen:
        """Heads and channels, each kind drawn over all layers together."""
        there = [target for target in find(model, [EVERY]) if target.name in names]
        slices: dict[str, Entries] = {}
        for kind in ("out", "down", "value", "up"):
            share = getattr(config, kind)
            if not share:
                continue
            families = [family for target in there for family in _families(target, kind)]
            if not families:
                raise MixwellError(f"{kind} is {share}, and no target has such a part; set {kind}: 0, or widen "
                                   "targets.")
            slices |= drawn(families, share, generator)
        return Chosen(slices=slices)


def _families(target: Target, kind: str) -> list[Family]:
    """The heads or channels of one kind at a target, none where it has no such part."""
    mixer: Any = target.site
    if kind == "out" and target.name.endswith("out.weight") and hasattr(mixer, "heads"):
        return [Family(target, "columns", mixer.heads, target.inputs // mixer.heads)]
    if kind == "down" and target.name.endswith("down_proj"):
        return [Family(target, "columns", target.inputs)]
    parts = fused(target)
    if kind == "value" and "v" in parts:
        return [Family(target, "rows", mixer.kv_heads, mixer.width, parts["v"].start)]
    if kind == "up" and "up" in parts:
        return [Family(target, "rows", len(parts["up"]), first=parts["up"].start)]
    return []


def drawn(families: Sequence[Family], share: float, generator: torch.Generator) -> dict[str, Entries]:
    """That share of all runs of the families, drawn without replacement over all of them; targets without any left out.

    A stack's experts have as many runs each as the stack would have as one matrix, drawn anew for each.
    """
    total = sum(family.count for family in families)
    wanted = max(1, round(share * total))
    order = torch.randperm(total, generator=generator, device=generator.device)
    taken = order[:wanted].sort().values
    found: dict[str, Entries] = {}
    first = 0
    for family in families:
        mine = taken[(taken >= first) & (taken < first + family.count)] - first
        first += family.count
        if len(mine):
            found[family.target.name] = Entries(family.axis, _of_experts(family, mine, generator))
    return found


def _of_experts(family: Family, mine: Tensor, generator: torch.Generator) -> Tensor:
    """Rows or columns [K]; [E, K] of a stack, drawn anew for each expert."""
    if not family.target.stack:
        return family.indices(mine)
    (experts,) = family.target.stack
    found = []
    for _ in range(experts):
        order = torch.randperm(family.count, generator=generator, device=generator.device)
        own = order[: len(mine)].sort().values
        found.append(family.indices(own))
    return torch.stack(found)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A quarter of all heads and channels."""
    return {"target": example_target(generator), "config": Config(out=0.25, down=0.25)}
