"""What the balance rules share.

A rule is a function `(routing, config, context) -> Tensor`, a scalar before its coefficient. Padding, where
`context.mask_T` is False, counts in no statistic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.core.routing import Context, Routing


def kept(values: Tensor, context: Context) -> Tensor:
    """Rows of real tokens: `values[mask]`, or all of them where there is no mask."""
    return values if context.mask_T is None else values[context.mask_T]


def load_fractions(routing: Routing, context: Context) -> Tensor:
    """f_E: the share of filled slots that each expert received, summing to 1 (no gradient)."""
    load = routing.load_E(context.mask_T).to(routing.scores_TE.dtype)
    return load / load.sum().clamp_min(1)


def mean_scores(routing: Routing, context: Context) -> Tensor:
    """P_E: the mean score of each expert over real tokens, each token's scores first scaled to sum to 1."""
    scores = kept(routing.scores_TE, context)
    shares = scores / scores.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    return shares.sum(0) / max(shares.shape[0], 1)
