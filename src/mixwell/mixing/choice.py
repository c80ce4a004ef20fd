"""From scores to slots: the steps that routers share with layers that choose experts by themselves.

Legend: T tokens, E experts, K slots per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.core.routing import Routing


def check_k(k: int, num_experts: int) -> None:
    """Raise `ValueError` for a k that the experts cannot serve."""
    if not 1 <= k <= num_experts:
        raise ValueError(f"k = {k} experts per token of {num_experts}; choose 1 to {num_experts}")


def check_choice(k: int, renormalise: bool | None) -> None:
    """Raise `ValueError` for a number of experts below 1, and for k = 1 with weights that are always 1."""
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    if k == 1 and renormalise:
        raise ValueError("k = 1 with renormalise leaves the router without a gradient; set renormalise: false")


def renormalises(k: int, renormalise: bool | None) -> bool:
    """Whether a token's weights are scaled to sum to 1: as asked for, by default wherever k > 1."""
    return k > 1 if renormalise is None else renormalise


def normalised(weights: Tensor) -> Tensor:
    """The weights, 0 or more, scaled to sum to 1 over the last dimension; a row of zeros stays zero."""
    tiny = torch.finfo(weights.dtype).tiny
    total = weights.sum(-1, keepdim=True).clamp_min(tiny)
    return weights / total


def select(scores_TE: Tensor, k: int, *, by_TE: Tensor | None = None, renormalise: bool = False,
           scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The k best experts of each token by `by_TE` (default: the scores), weighted by their scores.

    Returns (indices_TK, weights_TK). With `renormalise` the weights of a token sum to `scale`.
    """
    order_by = scores_TE if by_TE is None else by_TE
    indices = order_by.topk(k, dim=-1).indices
    weights = scores_TE.gather(-1, indices)
    if renormalise:
        weights = normalised(weights)
    return indices, weights if scale == 1.0 else weights * scale


def softmax_top_k(logits_TE: Tensor, k: int, renormalise: bool | None = None) -> Routing:
    """The k experts of highest softmax score; weights sum to 1 where `renormalise` (default: wherever k > 1)."""
    scores = logits_TE.softmax(-1)
    indices, weights = select(scores, k, renormalise=renormalises(k, renormalise))
    return Routing(indices, weights, scores, logits_TE)


def empty(indices_TK: Tensor, weights_TK: Tensor, out_TK: Tensor) -> tuple[Tensor, Tensor]:
    """(indices, weights) with the slots marked in `out_TK` emptied: index -1, weight 0."""
    indices = indices_TK.masked_fill(out_TK, -1)
    weights = weights_TK.masked_fill(out_TK, 0)
    return indices, weights


def to_slots(chosen_TE: Tensor, weights_TE: Tensor) -> tuple[Tensor, Tensor]:
    """(indices_TK, weights_TK) of the experts marked in `chosen_TE`, in expert order; empty slots hold -1 and 0.

    K is the largest number of experts that any token has, at least 1.
    """
    most = int(chosen_TE.sum(-1).max()) if chosen_TE.numel() else 1
    # a stable sort of the marks brings each token's experts to the front and keeps them in expert order
    order = chosen_TE.byte().argsort(dim=-1, descending=True, stable=True)
    order = order[:, : max(1, most)]
    filled = chosen_TE.gather(-1, order)
    weights = weights_TE.gather(-1, order)
    return empty(order, weights, ~filled)
