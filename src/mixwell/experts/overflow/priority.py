"""Priority by gate score: when room is short, the tokens that the router is surest of are served.

**Equation:** tokens sorted by s(t), best first, then served as by position;
    max: s = max_k w_tk (V-MoE);  sum: s = sum_k w_tk;  own: every slot by its own w_tk, whichever choice it is
    (importance-score routing, where an expert sees its own scores).
**Shapes:** indices and weights [T, K], C slots for each expert.
**Reference:** Riquelme et al. 2021, V-MoE (2106.05974), section 4.1, batch prioritised routing; Lou et al. 2021
    (2109.02008), section 3.3, importance-score routing.
**Differs:** from memory of both papers. Ties go to the earlier position.
**Fails when:** used in a causal model's training: whether a token is served then depends on later ones.
**Cost:** O(T K log T K).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.overflow._parts import by_choice, example_routing, serve


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the priority rule."""

    by: Literal["max", "sum", "own"] = "max"  # a token's best weight, the sum of its weights, or slot by slot


@method(
    title="Priority by gate score",
    paper="Cross-token Modeling with Conditional Computation",
    year=2021,
    tags={"permutation-equivariant", "drops"},
)
def priority(routing: Routing, config: Config, capacity: int, context: Context) -> Routing:
    """The routing with the lowest-scored slots beyond `capacity` emptied; raises `ValueError` below 0."""
    weights = routing.weights_TK.detach()
    if config.by == "own":
        order = weights.reshape(-1).argsort(descending=True, stable=True)
        return serve(routing, order, capacity, context)
    score_T = weights.amax(-1) if config.by == "max" else weights.sum(-1)
    best_first = score_T.argsort(descending=True, stable=True)
    order = by_choice(best_first, weights.shape[1])
    return serve(routing, order, capacity, context)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twelve tokens over four experts, two each, four slots an expert."""
    routing = example_routing(generator)
    return {"routing": routing, "config": Config(), "capacity": 4, "context": Context()}
