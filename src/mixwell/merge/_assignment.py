"""Permutations that fit two models' hidden units or experts onto each other."""

from __future__ import annotations

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


def squared_distances(rows: Tensor, others: Tensor) -> Tensor:
    """|x_i - y_j|^2 in float64 [N, M]."""
    x, y = rows.double(), others.double()
    square_x = x.square().sum(1, keepdim=True)
    square_y = y.square().sum(1)
    return (square_x + square_y - 2 * x @ y.T).clamp(min=0)
