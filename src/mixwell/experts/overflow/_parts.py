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


def check_capacity(capacity: int) -> None:
    """Refuse a negative capacity."""
    if capacity < 0:
        raise ValueError(f"capacity is {capacity}; expected 0 or more slots for each expert")


def by_choice(tokens_T: Tensor, k: int) -> Tensor:
    """Flat slots [N], all first choices before all second ones, in the given order of tokens within a choice."""
    return (tokens_T * k + torch.arange(k, device=tokens_T.device).unsqueeze(1)).reshape(-1)


def real_first(slots_N: Tensor, k: int, context: Context) -> Tensor:
    """The same order with the slots of padding at its end."""
    if context.mask_T is None:
        return slots_N
    return slots_N[torch.argsort((~context.mask_T[slots_N // k]).byte(), stable=True)]


def served(indices_TK: Tensor, slots_N: Tensor, capacity: int, num_experts: int) -> Tensor:
    """Which slots their experts have room for, bool [T, K], when the flat slots come in the order `slots_N`."""
    experts_N = indices_TK.reshape(-1)[slots_N]
    counts = torch.bincount(experts_N + 1, minlength=num_experts + 1)
    starts = counts.cumsum(0) - counts
    sort = torch.argsort(experts_N, stable=True)
    place_N = torch.empty_like(sort)
    place_N[sort] = torch.arange(sort.numel(), device=sort.device) - starts[experts_N[sort] + 1]
    keep_N = torch.empty_like(experts_N, dtype=torch.bool)
    keep_N[slots_N] = (place_N < capacity) & (experts_N >= 0)
    return keep_N.view_as(indices_TK)


def keep(routing: Routing, keep_TK: Tensor) -> Routing:
    """The routing with every other slot emptied."""
    return replace(routing, indices_TK=routing.indices_TK.masked_fill(~keep_TK, -1),
                   weights_TK=routing.weights_TK.masked_fill(~keep_TK, 0))


def serve(routing: Routing, slots_N: Tensor, capacity: int, context: Context) -> Routing:
    """The routing in which experts took slots in the order `slots_N`, real tokens first, until they were full."""
    check_capacity(capacity)
    order = real_first(slots_N, routing.indices_TK.shape[1], context)
    return keep(routing, served(routing.indices_TK, order, capacity, routing.num_experts))
