"""Permutations that fit two models' hidden units or experts onto each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError


def best_assignment(costs: Tensor) -> Tensor:
    """For each row of `costs` [N, N] a column of its own, so that the sum of the costs is the least there is."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MixwellError("matching units needs scipy; install it (pip install 'mixwell[tables]').") from error
    _, columns = linear_sum_assignment(costs.double().numpy())
    return torch.from_numpy(columns)


def mean_of(first: Mapping[str, Tensor], others: Sequence[Mapping[str, Tensor]], t: float) -> dict[str, Tensor]:
    """(1 - t) of the first model and t of the mean of the others, in the first one's types."""
    share = t / len(others)
    merged = {}
    for name, tensor in first.items():
        total = (1 - t) * tensor.float()
        for other in others:
            total += share * other[name].float()
        merged[name] = total.to(tensor.dtype)
    return merged


def squared_distances(rows: Tensor, others: Tensor) -> Tensor:
    """|x_i - y_j|^2 in float64 [N, M]."""
    x, y = rows.double(), others.double()
    square_x = x.square().sum(1, keepdim=True)
    square_y = y.square().sum(1)
    products = x @ y.T
    distances = square_x + square_y - 2 * products
    return distances.clamp(min=0)
