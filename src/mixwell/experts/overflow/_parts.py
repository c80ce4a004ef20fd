"""The contract of overflow rules, and what they share.

A rule is a function `(routing, config, capacity, context) -> Routing`: no expert has more than `capacity` filled
slots afterwards. A slot that nobody serves gets index -1 and weight 0; every other weight stays as it was. Padding,
where `context.mask_T` is False, is served last. Where nothing overflows the routing comes back unchanged.

Legend: T tokens, E experts, K slots per token, N = T * K flattened slots.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mixwell.core.routing import Context, Routing
from mixwell.mixing import empty


def check_capacity(capacity: int) -> None:
    """Raise `ValueError` for a negative capacity."""
    if capacity < 0:
        raise ValueError(f"capacity is {capacity}; expected 0 or more slots for each expert")


def example_routing(generator: torch.Generator) -> Routing:
    """Twelve tokens over four experts, two each: the smallest valid routing that overflows."""
    scores = torch.randn(12, 4, generator=generator).softmax(-1)
    weights, indices = scores.topk(2, dim=-1)
    return Routing(indices, weights, scores)


def by_choice(tokens_T: Tensor, k: int) -> Tensor:
    """Flat slots [N], all first choices before all second ones, in the given order of tokens within a choice."""
    choices = torch.arange(k, device=tokens_T.device).unsqueeze(1)
    return (tokens_T * k + choices).reshape(-1)


def real_first(slots_N: Tensor, k: int, context: Context) -> Tensor:
    """The same order with the slots of padding at its end."""
    if context.mask_T is None:
        return slots_N
    padding = ~context.mask_T[slots_N // k]
    order = torch.argsort(padding.byte(), stable=True)
    return slots_N[order]


def served(indices_TK: Tensor, slots_N: Tensor, capacity: int, num_experts: int) -> Tensor:
    """Which slots their experts have room for, bool [T, K], when the flat slots come in the order `slots_N`."""
    experts_N = indices_TK.reshape(-1)[slots_N]
    shifted_N = experts_N + 1  # empty slots, -1, are counted first
    counts = torch.bincount(shifted_N, minlength=num_experts + 1)
    starts = counts.cumsum(0) - counts
    sort = torch.argsort(experts_N, stable=True)
    places = torch.arange(len(sort), device=sort.device)
    place_N = torch.empty_like(sort)
    first = starts[shifted_N[sort]]
    place_N[sort] = places - first
    has_room = (place_N < capacity) & (experts_N >= 0)
    keep_N = torch.empty_like(has_room)
    keep_N[slots_N] = has_room
    return keep_N.view_as(indices_TK)


def keep(routing: Routing, keep_TK: Tensor) -> Routing:
    """The routing with every other slot emptied."""
    indices, weights = empty(routing.indices_TK, routing.weights_TK, ~keep_TK)
    return replace(routing, indices_TK=indices, weights_TK=weights)


def serve(routing: Routing, slots_N: Tensor, capacity: int, context: Context) -> Routing:
    """The routing in which experts took slots in the order `slots_N`, real tokens first, until they were full."""
    check_capacity(capacity)
    indices = routing.indices_TK
    order = real_first(slots_N, indices.shape[1], context)
    return keep(routing, served(indices, order, capacity, routing.num_experts))
