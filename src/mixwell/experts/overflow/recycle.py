"""Recycle routing: what overflows goes to random experts that have room, instead of being dropped.

**Equation:** served by position first; every slot left over draws a free place of another expert, each place equally
    likely and used once, an expert never twice for one token.
**Shapes:** indices and weights [T, K], C slots for each expert.
**Reference:** Sun et al. 2024, Hunyuan-Large (2411.02265), section 2.2.2.
**Differs:** the report does not say with which weight a recycled token counts: by default with the slot's own, so
    that a token's weights keep their sum; with `weight: score` the new expert's score. At K above 1 a token stays
    dropped where every expert with room already has it. Padding is not recycled. Without a generator (outside
    training) the free places are taken in expert order.
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
from mixwell.experts.overflow._parts import by_choice, check_capacity, keep, real_first, served


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of recycle routing."""

    weight: Literal["slot", "score"] = "slot"  # of a recycled token: the slot's old weight, or the new expert's score


def place(indices_TK: Tensor, waiting_N: Tensor, free_E: Tensor, generator: torch.Generator | None) -> Tensor:
    """The indices [T, K] with the waiting flat slots given to experts with free places, none twice for one token."""
    indices, k = indices_TK.clone(memory_format=torch.contiguous_format), indices_TK.shape[1]
    free_E = free_E.clone()
    for column in range(k):  # a column holds each token once, so that one round of draws cannot clash with itself
        slots = waiting_N[waiting_N % k == column]
        seats = torch.arange(len(free_E), device=free_E.device).repeat_interleave(free_E)
        if generator is not None:
            seats = seats[torch.randperm(len(seats), generator=generator, device=generator.device).to(seats.device)]
        paired = slots[: len(seats)]
        seats = seats[: len(paired)]
        fits = (indices[paired // k] != seats.unsqueeze(1)).all(1)
        indices.view(-1)[paired[fits]] = seats[fits]
        free_E -= torch.bincount(seats[fits], minlength=len(free_E))
        for slot in [*paired[~fits].tolist(), *slots[len(paired) :].tolist()]:
            _place_one(indices, slot, free_E, generator)
    return indices


def _place_one(indices_TK: Tensor, slot: int, free_E: Tensor, generator: torch.Generator | None) -> None:
    """Give one slot a free place of an expert that its token does not have, in place; leave it empty otherwise."""
    chances = free_E.clone()
    held = indices_TK[slot // indices_TK.shape[1]]
    chances[held[held >= 0]] = 0
    total = int(chances.sum())
    if not total:
        return
    draw = 0 if generator is None else int(torch.randint(total, (), generator=generator, device=generator.device))
    expert = int((chances.cumsum(0) > draw).byte().argmax())
    indices_TK.view(-1)[slot] = expert
    free_E[expert] -= 1


@method(
    title="Recycle routing",
    paper="Hunyuan-Large: An Open-Source MoE Model with 52 Billion Activated Parameters by Tencent",
    year=2024,
    tags={"draws"},
)
def recycle(routing: Routing, config: Config, capacity: int, context: Context) -> Routing:
    """The routing with slots beyond `capacity` moved to experts with room."""
    check_capacity(capacity)
    tokens, k = routing.indices_TK.shape
    order = real_first(by_choice(torch.arange(tokens, device=routing.indices_TK.device), k), k, context)
    keep_TK = served(routing.indices_TK, order, capacity, routing.num_experts)
    lost_TK = ~keep_TK & (routing.indices_TK >= 0)
    if context.mask_T is not None:  # padding holds no place that a real token could be recycled to
        keep_TK, lost_TK = (slots_TK & context.mask_T.unsqueeze(1) for slots_TK in (keep_TK, lost_TK))
    kept = keep(routing, keep_TK)
    waiting = order[lost_TK.reshape(-1)[order]]
    indices = place(kept.indices_TK, waiting, capacity - kept.load_E(), context.generator)
    recycled = lost_TK & (indices >= 0)
    if context.mask_T is not None:
        indices = torch.where(context.mask_T.unsqueeze(1), indices, routing.indices_TK)
        keep_TK = served(indices, order, capacity, routing.num_experts) & ~recycled
        indices, kept = indices.masked_fill(~(keep_TK | recycled), -1), keep(routing, keep_TK)
    new = routing.weights_TK
    if config.weight == "score":
        new = routing.scores_TE.gather(1, indices.clamp_min(0)).to(new.dtype)
    return replace(kept, indices_TK=indices, weights_TK=torch.where(recycled, new, kept.weights_TK))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twelve tokens over four experts, two each, six slots an expert."""
    scores = torch.randn(12, 4, generator=generator).softmax(-1)
    weights, indices = scores.topk(2, dim=-1)
    return {"routing": Routing(indices, weights, scores), "config": Config(), "capacity": 6,
            "context": Context(generator=torch.Generator().manual_seed(0))}
