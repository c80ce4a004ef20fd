"""Routers with a linear map and routers by token id, and the steps that several of them share.

Legend: T tokens, D width, E experts, K slots per token.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context, Routing
from mixwell.kernels.linear import linear
from mixwell.kernels.norm import wide
from mixwell.mixing import Router, normal_parameter


class LinearRouter(Router):
    """A router whose logits are one float32 linear map of the token; subclasses say what follows."""

    def __init__(self, dim: int, num_experts: int, config: Any, generator: torch.Generator | None = None) -> None:
        super().__init__(dim, num_experts, config, generator)
        self.weight = normal_parameter((num_experts, dim), generator)

    def logits(self, x_TD: Tensor) -> Tensor:
        """Router logits [T, E] in float32 or better."""
        x = wide(x_TD)
        return linear(x, self.weight.to(x.dtype))


def keep_groups(scores_TE: Tensor, groups: int, kept: int, best: int = 2) -> Tensor:
    """The scores with -inf outside each token's `kept` best groups, ranked by the sum of their `best` best scores."""
    grouped = scores_TE.unflatten(-1, (groups, -1))
    size = grouped.shape[-1]
    leading = grouped.topk(min(best, size), dim=-1).values
    strength = leading.sum(-1)
    chosen = strength.topk(kept, dim=-1).indices
    everywhere = torch.ones_like(strength, dtype=torch.bool)
    others = everywhere.scatter(-1, chosen, False)
    masked = grouped.masked_fill(others.unsqueeze(-1), float("-inf"))
    return masked.flatten(-2)


def check_groups(groups: int, groups_kept: int) -> None:
    """Raise `ValueError` where more groups are kept than there are."""
    if not 1 <= groups_kept <= groups:
        raise ValueError(f"groups_kept is {groups_kept}; expected 1 to groups = {groups}")


def check_group_sizes(num_experts: int, k: int, groups: int, groups_kept: int) -> None:
    """Raise `ValueError` where the experts do not fall into equal groups with k of them in those kept."""
    size, rest = divmod(num_experts, groups)
    if rest or k > size * groups_kept:
        raise ValueError(f"{num_experts} experts in {groups} groups, {groups_kept} kept, cannot give k = {k}; expected "
                         "equal groups with at least k experts in those kept")


class TokenRouter(Router):
    """A router that goes by token id.

    Where its table depends on how often the ids occur, `needs_tokens` is true until `fit_tokens` has seen training
    text; what it learnt lies in buffers, which are saved with the model.
    """

    @property
    def needs_tokens(self) -> bool:
        """Whether `fit_tokens` must be called before the router can route."""
        return False

    def fit_tokens(self, tokens_N: Tensor, generator: torch.Generator | None = None) -> None:
        """Learn the table from a stream of token ids [N]."""
        raise NotImplementedError

    def ids(self, x_TD: Tensor, context: Context, vocab_size: int) -> Tensor:
        """The token ids [T], checked; raises `MixwellError` where the router cannot know them."""
        name = type(self).__name__
        tokens = x_TD.shape[0]
        if self.needs_tokens:
            raise MixwellError(f"{name} has no table yet: call fit_tokens(tokens) with training text, or give "
                               "`frequencies` in its config.")
        ids = context.token_ids_T
        if ids is None or ids.shape[0] != tokens:
            got = "none" if ids is None else ids.shape[0]
            raise MixwellError(f"{name} routes by token id and got {got} for {tokens} tokens; give "
                               "Context(token_ids_T=...).")
        low, high = span(ids)
        if low < 0 or high >= vocab_size:
            raise MixwellError(f"{name} knows {vocab_size} token ids and got {low} to {high}; set vocab_size to the "
                               "tokenizer's.")
        return ids


def span(values_T: Tensor) -> tuple[int, int]:
    """(least, largest) of whole numbers; (0, 0) of none."""
    if not values_T.numel():
        return 0, 0
    return int(values_T.min()), int(values_T.max())


def project(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """W x of every token in x's type, [T, E]."""
    return x_TD @ weight_ED.to(x_TD.dtype).T


def one_hot_routing(indices_T1: Tensor, num_experts: int, like: Tensor) -> Routing:
    """The routing of a fixed choice: each token wholly to its one expert, in the type of `like`."""
    scores = one_hot(indices_T1.squeeze(-1), num_experts).to(like.dtype)
    weights = scores.gather(-1, indices_T1)
    return Routing(indices_T1, weights, scores)


def draws(context: Context, router: Router) -> torch.Generator:
    """The context's generator, for a router that draws while training; raises `MixwellError` where there is none."""
    if context.generator is None:
        raise MixwellError(f"{type(router).__name__} draws while training; give Context(generator=...) or call eval().")
    return context.generator


def capacity(num_tokens: int, num_experts: int, factor: float) -> int:
    """Slots of one expert: ceil(factor * T / E), at most T."""
    return min(num_tokens, math.ceil(factor * num_tokens / num_experts))


def balanced_buckets(frequencies: Sequence[float], num_buckets: int) -> list[int]:
    """A bucket for each item so that the summed frequencies come out even: heaviest item first, into the lightest
    bucket; ties go to the lower number, and to the bucket with fewer items."""
    heap = [(0.0, 0, b) for b in range(num_buckets)]
    buckets = [0] * len(frequencies)
    items = range(len(frequencies))
    heaviest_first = sorted(items, key=lambda i: -frequencies[i])
    for item in heaviest_first:
        weight, count, bucket = heap[0]
        buckets[item] = bucket
        weight += float(frequencies[item])
        heapq.heapreplace(heap, (weight, count + 1, bucket))
    return buckets
