"""Drop what overflows, in the order of positions: the tail of the batch goes without.

**Equation:** slot (t, k) is served if fewer than C slots of its expert came before it, all first choices in the order
    of tokens, then all second ones;  C = ceil(capacity_factor T K / E).
**Shapes:** indices and weights [T, K], C slots for each expert.
**Reference:** Fedus et al. 2021 (2101.03961), section 2.2 (top-1); Lepikhin et al. 2020 (2006.16668), algorithm 1, for
    the order over choices.
**Differs:** padding is served last. Top-2 weights are not scaled up when one of the two is dropped.
**Fails when:** popular experts fill up early in the batch: tokens at its end are dropped whatever they need.
**Cost:** O(T K log T K).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.overflow._parts import by_choice, example_routing, serve


@dataclass(frozen=True, kw_only=True)
class Config:
    """Dropping by position has no option beside the capacity, which the caller gives."""


@method(
    title="Drop overflow by position",
    paper="Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity",
    year=2021,
    tags={"positional", "drops"},
)
def drop(routing: Routing, config: Config, capacity: int, context: Context) -> Routing:
    """The routing with slots beyond `capacity` emptied, the last positions first; raises `ValueError` below 0."""
    tokens, k = routing.indices_TK.shape
    in_order = torch.arange(tokens, device=routing.indices_TK.device)
    return serve(routing, by_choice(in_order, k), capacity, context)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twelve tokens over four experts, two each, four slots an expert."""
    routing = example_routing(generator)
    return {"routing": routing, "config": Config(), "capacity": 4, "context": Context()}
