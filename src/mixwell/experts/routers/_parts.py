"""The routers' contract, and the steps that most of them share.

Legend: T tokens, D width, E experts, K slots per token.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.core.rng import normal  # both are handed on to the routers
from mixwell.core.routing import Context, Routing
from mixwell.kernels.linear import linear
from mixwell.kernels.norm import wide


class Router(nn.Module):
    """A router turns tokens into a `Routing`: `forward(x_TD, context) -> Routing`.

    Its parameters stay float32 whatever the model's compute type, and so does everything up to the choice.
    """

    keep_float32: ClassVar[bool] = True  # read by whoever casts a model
    has_logits: ClassVar[bool] = True  # False where the choice is not learnt, so that no balance loss can act on it

    def __init__(self, dim: int, num_experts: int, config: Any, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim, self.num_experts, self.config = dim, num_experts, config

    @property
    def experts_per_token(self) -> float:
        """Experts that a token visits on average, for counting FLOPs; the most it can visit where that varies."""
        return float(getattr(self.config, "k", self.num_experts))

    def share(self, first: Router) -> None:
        """Called by whoever stacks layers, with the router of the first mixture layer of the same method, before
        training or loading; a router that keeps some of its parameters in common over depth takes them from there."""

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        raise NotImplementedError


class LinearRouter(Router):
    """A router whose logits are one float32 linear map of the token; subclasses say what follows."""

    def __init__(self, dim: int, num_experts: int, config: Any, generator: torch.Generator | None = None) -> None:
        super().__init__(dim, num_experts, config, generator)
        self.weight = nn.Parameter(normal((num_experts, dim), 0.02, generator))

    def logits(self, x_TD: Tensor) -> Tensor:
        """Router logits [T, E] in float32 or better."""
        x = wide(x_TD)
        return linear(x, self.weight.to(x.dtype))


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
        if self.needs_tokens:
            raise MixwellError(f"{name} has no table yet: call fit_tokens(tokens) with training text, or give "
                               "`frequencies` in its config.")
        ids = context.token_ids_T
        if ids is None or ids.shape[0] != x_TD.shape[0]:
            raise MixwellError(f"{name} routes by token id and got {'none' if ids is None else ids.shape[0]} for "
                               f"{x_TD.shape[0]} tokens; give Context(token_ids_T=...).")
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size):
            raise MixwellError(f"{name} knows {vocab_size} token ids and got {int(ids.min())} to {int(ids.max())}; "
                               "set vocab_size to the tokenizer's.")
        return ids


def check_k(k: int, num_experts: int) -> None:
    """Refuse a k that the experts cannot serve."""
    if not 1 <= k <= num_experts:
        raise ValueError(f"k = {k} experts per token of {num_experts}; choose 1 to {num_experts}")


def select(scores_TE: Tensor, k: int, *, by_TE: Tensor | None = None, renormalise: bool = False,
           scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The k best experts of each token by `by_TE` (default: the scores), weighted by their scores.

    Returns (indices_TK, weights_TK). With `renormalise` the weights of a token sum to `scale`.
    """
    indices = (scores_TE if by_TE is None else by_TE).topk(k, dim=-1).indices
    weights = scores_TE.gather(-1, indices)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return indices, weights if scale == 1.0 else weights * scale


def draws(context: Context, router: Router) -> torch.Generator:
    """The context's generator, for a router that draws while training; raises `MixwellError` where there is none."""
    if context.generator is None:
        raise MixwellError(f"{type(router).__name__} draws while training; give Context(generator=...) or call eval().")
    return context.generator


def capacity(num_tokens: int, num_experts: int, factor: float) -> int:
    """Slots of one expert: ceil(factor * T / E), at most T."""
    return min(num_tokens, math.ceil(factor * num_tokens / num_experts))


def to_slots(chosen_TE: Tensor, weights_TE: Tensor) -> tuple[Tensor, Tensor]:
    """(indices_TK, weights_TK) of the experts marked in `chosen_TE`, in expert order; empty slots hold -1 and 0.

    K is the largest number of experts that any token has, at least 1.
    """
    width = max(1, int(chosen_TE.sum(-1).max())) if chosen_TE.numel() else 1
    order = chosen_TE.byte().argsort(dim=-1, descending=True, stable=True)[:, :width]
    filled = chosen_TE.gather(-1, order)
    return order.masked_fill(~filled, -1), weights_TE.gather(-1, order).masked_fill(~filled, 0)


def balanced_buckets(frequencies: Sequence[float], num_buckets: int) -> list[int]:
    """A bucket for each item so that the summed frequencies come out even: heaviest item first, into the lightest
    bucket; ties go to the lower number, and to the bucket with fewer items."""
    heap = [(0.0, 0, b) for b in range(num_buckets)]
    buckets = [0] * len(frequencies)
    for item in sorted(range(len(frequencies)), key=lambda i: -frequencies[i]):
        weight, items, bucket = heap[0]
        buckets[item] = bucket
        heapq.heapreplace(heap, (weight + float(frequencies[item]), items + 1, bucket))
    return buckets


def check_choice(k: int, renormalise: bool | None) -> None:
    """Refuse a number of experts below 1, and k = 1 with weights that are always 1."""
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    if k == 1 and renormalise:
        raise ValueError("k = 1 with renormalise leaves the router without a gradient; set renormalise: false")


def softmax_top_k(logits_TE: Tensor, k: int, renormalise: bool | None = None) -> Routing:
    """The k experts of highest softmax score; weights sum to 1 where `renormalise` (default: wherever k > 1)."""
    scores = logits_TE.softmax(-1)
    indices, weights = select(scores, k, renormalise=k > 1 if renormalise is None else renormalise)
    return Routing(indices, weights, scores, logits_TE)
