"""The contract of analyses, and what they share.

An analysis is a pure function of tensors, config and context that returns a dict of plain data (numbers, strings,
lists, dicts with text keys), ready for JSON. Padding, where `context.mask_T` is False, counts in nothing. Nothing is
differentiated. A figure that its data do not define (a mean over nothing) is None.

Legend: T tokens, E experts, K slots per token, N filled slots, G groups of tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixwell.core.routing import Context, Routing
from mixwell.mixing import normalised


def example_routing(generator: torch.Generator, tokens: int = 8) -> Routing:
    """Tokens over four experts, two each: the smallest valid routing."""
    scores = torch.randn(tokens, 4, generator=generator).softmax(-1)
    weights, indices = scores.topk(2, dim=-1)
    return Routing(indices, weights, scores)


def real(values: Tensor, context: Context) -> Tensor:
    """Rows of real tokens, detached, in float64 where they are floating."""
    values = values.detach()
    if context.mask_T is not None:
        values = values[context.mask_T]
    return values.double() if values.is_floating_point() else values


def chosen_TE(routing: Routing, context: Context) -> Tensor:
    """Which experts each real token went to, as float64 0 and 1."""
    indices = real(routing.indices_TK, context)
    shape = (len(indices), routing.num_experts + 1)  # the first column takes the empty slots, index -1
    slots = torch.zeros(shape, dtype=torch.float64, device=indices.device)
    return slots.scatter(1, indices + 1, 1.0)[:, 1:]


def gates_TE(routing: Routing, context: Context) -> Tensor:
    """Each real token's scores, scaled to sum to 1, float64."""
    return normalised(real(routing.scores_TE, context))


def entropy_nats(p: Tensor) -> Tensor:
    """Entropy over the last dimension, in nats; 0 log 0 is 0."""
    return -torch.special.xlogy(p, p).sum(-1)


def number(value: Tensor | float) -> float | None:
    """A plain number, None where it is not finite."""
    result = float(value)
    return result if math.isfinite(result) else None


def mean_off_diagonal(square: Tensor) -> float | None:
    """Mean of a square matrix without its diagonal; None where there is nothing else."""
    size = square.shape[0]
    if size < 2:
        return None
    others = square.sum() - square.diagonal().sum()
    return number(others / (size * size - size))


def pearson(x: Tensor, y: Tensor) -> float | None:
    """Correlation of two vectors; None where one of them does not vary."""
    x = x - x.mean()
    y = y - y.mean()
    scale = x.norm() * y.norm()
    if x.numel() < 2 or not scale > 1e-12:
        return None
    product = (x * y).sum()
    return number(product / scale)
