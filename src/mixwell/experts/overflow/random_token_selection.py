"""Random token selection: experts take tokens in random order, so that no position is starved.

**Equation:** as dropping by position, with the tokens in a random order drawn for the batch: a token of an expert with
    n > C takers is served with probability C / n wherever it stands.
**Shapes:** indices and weights [T, K], C slots for each expert.
**Reference:** Kim et al. 2021 (2109.10465), section 3.2; DeepSpeed's top-1 gate.
**Differs:** one random order of tokens serves all experts and choices, first choices before second ones; the paper has
    one choice. Without a generator (outside training) the order is that of positions. Not here: aggregation (experts of
    two checkpoints joined in a larger mixture) and pruning (the least used ones removed), which convert checkpoints.
**Fails when:** the capacity is so small that chance drops what matters.
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
    """Random token selection has no option beside the capacity, which the caller gives."""


@method(
    title="Random token selection",
    paper="Scalable and Efficient MoE Training for Multitask Multilingual Models",
    year=2021,
    tags={"draws", "drops"},
)
def random_token_selection(routing: Routing, config: Config, capacity: int, context: Context) -> Routing:
    """The routing with random slots beyond `capacity` emptied; raises `ValueError` below 0."""
    tokens, k = routing.indices_TK.shape
    device = routing.indices_TK.device
    draw = context.generator
    if draw is None:
        order_T = torch.arange(tokens, device=device)
    else:
        order_T = torch.randperm(tokens, generator=draw, device=draw.device).to(device)
    return serve(routing, by_choice(order_T, k), capacity, context)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twelve tokens over four experts, two each, four slots an expert."""
    routing = example_routing(generator)
    context = Context(generator=torch.Generator().manual_seed(0))
    return {"routing": routing, "config": Config(), "capacity": 4, "context": context}
