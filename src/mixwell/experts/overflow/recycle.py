"""Recycle routing: what overflows goes to random experts that have room, instead of being dropped.

**Equation:** served by position first; every slot left over draws a free place of another expert, each place equally
    likely and used once, an expert never twice for one token.
**Shapes:** indices and weights [T, K], C slots for each expert.
**Reference:** Sun et al. 2024, Hunyuan-Large (2411.02265), section 2.2.2.
**Differs:** the report does not say with which weight a recycled token counts: by default with the slot's own, so that
    a token's weights keep their sum; with `weight: score` the new expert's score. At K above 1 a token stays dropped
    where every expert with room already has it. Padding is not recycled. Without a generator (outside training) the
    free places are taken in expert order. Not here: the report's learning rate of its own for experts, lowered since
    each sees a share of the batch, which is the optimiser's; and keys and values shared by layers.
**Fails when:** experts have specialised: a random one is then worse than the residual alone.
**Cost:** O(T K log T K), and O(E) for each slot that clashes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.overflow._parts import by_choice, check_capacity, example_routing, keep, real_first, served


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of recycle routing."""

    weight: Literal["slot", "score"] = "slot"  # of a recycled token: the slot's old weight, or the new expert's score


def place(indices_TK: Tensor, waiting_N: Tensor, free_E: Tensor, generator: torch.Generator | None) -> Tensor:
    """The indices [T, K] with the waiting flat slots given to experts with free places, none twice for one token."""
    indices = indices_TK.clone(memory_format=torch.contiguous_format)
    flat = indices.view(-1)
    k = indices.shape[1]
    free_E = free_E.clone()
    for column in range(k):  # a column holds each token once, so that one round of draws cannot clash with itself
        slots = waiting_N[waiting_N % k == column]
        seats = _seats(free_E, generator)
        paired = slots[: len(seats)]
        seats = seats[: len(paired)]
        fits = (indices[paired // k] != seats.unsqueeze(1)).all(1)
        taken = seats[fits]
        flat[paired[fits]] = taken
        free_E -= torch.bincount(taken, minlength=len(free_E))
        clashing = paired[~fits]
        without_pair = slots[len(paired) :]
        for slot in torch.cat((clashing, without_pair)).tolist():
            _place_one(indices, slot, free_E, generator)
    return indices


def _seats(free_E: Tensor, generator: torch.Generator | None) -> Tensor:
    """Each expert as often as it has free places, in a random order; in expert order without a generator."""
    experts = torch.arange(len(free_E), device=free_E.device)
    seats = experts.repeat_interleave(free_E)
    if generator is None:
        return seats
    order = torch.randperm(len(seats), generator=generator, device=generator.device)
    return seats[order.to(seats.device)]


def _place_one(indices_TK: Tensor, slot: int, free_E: Tensor, generator: torch.Generator | None) -> None:
    """Give one slot a free place of an expert that its token does not have, in place; leave it empty otherwise."""
    chances = free_E.clone()
    own = indices_TK[slot // indices_TK.shape[1]]
    chances[own[own >= 0]] = 0
    total = int(chances.sum())
    if not total:
        return
    draw = 0
    if generator is not None:
        draw = int(torch.randint(total, (), generator=generator, device=generator.device))
    beyond = chances.cumsum(0) > draw
    expert = int(beyond.byte().argmax())
    indices_TK.view(-1)[slot] = expert
    free_E[expert] -= 1


@method(
    title="Recycle routing",
    paper="Hunyuan-Large: An Open-Source MoE Model with 52 Billion Activated Parameters by Tencent",
    year=2024,
    tags={"draws"},
)
def recycle(routing: Routing, config: Config, capacity: int, context: Context) -> Routing:
    """The routing with slots beyond `capacity` moved to experts with room; raises `ValueError` for one below 0."""
    check_capacity(capacity)
    tokens, k = routing.indices_TK.shape
    in_order = torch.arange(tokens, device=routing.indices_TK.device)
    order = real_first(by_choice(in_order, k), k, context)
    keep_TK = served(routing.indices_TK, order, capacity, routing.num_experts)
    lost_TK = ~keep_TK & (routing.indices_TK >= 0)
    real_TK = None if context.mask_T is None else context.mask_T.unsqueeze(1)
    if real_TK is not None:  # padding holds no place that a real token could be recycled to
        keep_TK = keep_TK & real_TK
        lost_TK = lost_TK & real_TK
    kept = keep(routing, keep_TK)
    waiting = order[lost_TK.reshape(-1)[order]]
    indices = place(kept.indices_TK, waiting, capacity - kept.load_E(), context.generator)
    recycled = lost_TK & (indices >= 0)
    if real_TK is not None:  # what is left over goes back to padding
        indices = torch.where(real_TK, indices, routing.indices_TK)
        keep_TK = served(indices, order, capacity, routing.num_experts) & ~recycled
        indices = indices.masked_fill(~(keep_TK | recycled), -1)
        kept = keep(routing, keep_TK)
    new = _new_weights(routing, indices, config)
    weights = torch.where(recycled, new, kept.weights_TK)
    return replace(kept, indices_TK=indices, weights_TK=weights)


def _new_weights(routing: Routing, indices_TK: Tensor, config: Config) -> Tensor:
    """What a recycled slot weighs: as before, or by the new expert's score."""
    if config.weight == "slot":
        return routing.weights_TK
    scores = routing.scores_TE.gather(1, indices_TK.clamp_min(0))
    return scores.to(routing.weights_TK.dtype)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twelve tokens over four experts, two each, six slots an expert."""
    routing = example_routing(generator)
    context = Context(generator=torch.Generator().manual_seed(0))
    return {"routing": routing, "config": Config(), "capacity": 6, "context": context}
