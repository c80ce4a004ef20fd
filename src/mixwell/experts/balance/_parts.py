"""What the balance rules share.

A rule is a function `(routing, config, context) -> Tensor`, a scalar before its coefficient. Padding, where
`context.mask_T` is False, counts in no statistic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.core.routing import Context, Routing
from mixwell.mixing import normalised


def kept(values: Tensor, context: Context) -> Tensor:
    """Rows of real tokens: `values[mask]`, or all of them where there is no mask."""
    return values if context.mask_T is None else values[context.mask_T]


def example_routing(generator: torch.Generator) -> Routing:
    """Eight tokens over four experts, two each: the smallest valid routing with logits."""
    logits = torch.randn(8, 4, generator=generator)
    scores = logits.softmax(-1)
    weights, indices = scores.topk(2, dim=-1)
    return Routing(indices, weights, scores, logits)


def load_fractions(routing: Routing, context: Context) -> Tensor:
    """f_E: the share of filled slots that each expert received, summing to 1 (no gradient)."""
    load = routing.load_E(context.mask_T).to(routing.scores_TE.dtype)
    return load / load.sum().clamp_min(1)


def mean_scores(routing: Routing, context: Context) -> Tensor:
    """P_E: the mean score of each expert over real tokens, each token's scores first scaled to sum to 1."""
    shares = normalised(kept(routing.scores_TE, context))
    return shares.sum(0) / max(len(shares), 1)
