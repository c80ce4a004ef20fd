"""Clusters of rows: k-means, and assignment where every cluster has a number of places.

Legend: N rows, C clusters, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ITERATIONS = 20


def assign_places(cost_NC: Tensor, places: Sequence[int]) -> Tensor:
    """A cluster for each row, int64 [N], such that cluster c gets `places[c]` rows (N in all) and the cost is low.

    Rows that lose most by going elsewhere choose first; then rows of any two clusters swap while that lowers the cost.
    """
    cost = cost_NC.double()
    found = _choose_in_turn(cost, list(places))
    pairs = [(a, b) for a in range(len(places)) for b in range(a)]
    moved = True
    while moved:
        swaps = [_swap(cost, found, a, b) for a, b in pairs]
        moved = any(swaps)
    return found


def _choose_in_turn(cost: Tensor, free: list[int]) -> Tensor:
    found = torch.full((len(cost),), -1, device=cost.device)
    while bool((found < 0).any()):
        waiting = (found < 0).nonzero().flatten()
        closed = torch.tensor([room == 0 for room in free], device=cost.device)
        open_cost = cost[waiting].masked_fill(closed, float("inf"))
        best = open_cost.argmin(1)
        loss = _loss_elsewhere(open_cost)
        for c in best.unique().tolist():
            rows = (best == c).nonzero().flatten()
            first = loss[rows].argsort(descending=True, stable=True)[: free[c]]
            found[waiting[rows[first]]] = c
            free[c] -= len(first)
    return found


def _loss_elsewhere(cost: Tensor) -> Tensor:
    """What each row loses by its second choice."""
    if cost.shape[1] == 1:
        return torch.zeros_like(cost[:, 0])
    two = cost.topk(2, largest=False).values
    first, second = two.unbind(1)
    return second - first


def _swap(cost: Tensor, found: Tensor, a: int, b: int) -> bool:
    """Swap rows of two clusters in pairs as long as that lowers the cost; whether any were."""
    rows_a, gain_a = _willing(cost, found, a, b)
    rows_b, gain_b = _willing(cost, found, b, a)
    both = min(len(gain_a), len(gain_b))
    gain = gain_a[:both] + gain_b[:both]
    count = int((gain > 1e-12).sum())
    found[rows_a[:count]] = b
    found[rows_b[:count]] = a
    return count > 0


def _willing(cost: Tensor, found: Tensor, own: int, other: int) -> tuple[Tensor, Tensor]:
    """(rows of one cluster, what each would gain in another), those that gain most first."""
    rows = (found == own).nonzero().flatten()
    gain = cost[rows, own] - cost[rows, other]
    gain, order = gain.sort(descending=True, stable=True)
    return rows[order], gain


def squared_distances(x_ND: Tensor, centres_CD: Tensor) -> Tensor:
    """||x_n - c||^2, [N, C]."""
    cross = x_ND @ centres_CD.T
    own = x_ND.square().sum(1, keepdim=True)
    theirs = centres_CD.square().sum(1)
    distance = own - 2 * cross + theirs
    return distance.clamp_min(0)


def k_means(x_ND: Tensor, count: int, generator: torch.Generator,
            places: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """(centres [C, D], cluster of each row [N]) by Lloyd's steps; with `places` every cluster has that many rows.

    The first centre is a row at random, each further one the row that is farthest from those before.
    """
    x = x_ND.double()
    centres = _far_apart(x, count, generator)
    found = torch.full((len(x),), -1)
    for _ in range(ITERATIONS):
        cost = squared_distances(x, centres)
        now = cost.argmin(1) if places is None else assign_places(cost, places)
        if torch.equal(now, found):
            break
        found = now
        centres = _means(x, found, centres)
    return centres.to(x_ND.dtype), found


def _far_apart(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    nearest = squared_distances(x, x[chosen]).flatten()
    for _ in range(count - 1):
        chosen.append(int(nearest.argmax()))
        distance = squared_distances(x, x[chosen[-1:]]).flatten()
        nearest = torch.minimum(nearest, distance)
    return x[chosen]


def _means(x: Tensor, found: Tensor, before: Tensor) -> Tensor:
    """The mean row of each cluster; one without rows stays where it was."""
    nothing = torch.zeros_like(before)
    sums = nothing.index_add(0, found, x)
    rows = torch.bincount(found, minlength=len(before))
    rows = rows.unsqueeze(1)
    means = sums / rows.clamp_min(1)
    return torch.where(rows > 0, means, before)
