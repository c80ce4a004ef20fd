"""Stratified mixture: harder tokens pass more experts, and the loss is no higher than a plain mixture's of equal size.

Paper: Towards Being Parameter-Efficient: A Stratified Sparsely Activated Transformer with Dynamic Capacity.
Tried: regression in sixteen clusters, eight of which ask for a linear map and eight for a two-layer ReLU network;
strata of four and four experts, top-1, against one of eight; by how many experts more a token of a hard cluster passes
than one of an easy cluster. Against it: no more experts for hard tokens, or an error more than 1 % higher than the
plain mixture's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.experts._synthetic import (
    BALANCED,
    DIM,
    TOP1,
    Batch,
    Clusters,
    build,
    fit,
    mapped,
    on_problem,
    squared_error,
    test,
)
from mixwell.core.rng import generator

STRATA: dict[str, Any] = {"method": "stratified", "strata": (4, 4)}


class Uneven(Clusters):
    """The second half of the clusters ask for relu in between: y = sqrt(2) B_c relu(A_c z)."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        drawn = torch.randn(self.maps_CDD.shape, generator=generator(seed, "second"))
        self.second_CDD = (2 / DIM) ** 0.5 * drawn

    def hard(self, labels_T: Tensor) -> Tensor:
        """Whether a token is of the second half."""
        return labels_T >= len(self.centres_CD) // 2

    def __call__(self, count: int, draws: torch.Generator) -> Batch:
        """As `Clusters`."""
        batch = super().__call__(count, draws)
        labels, y = batch.labels_T, batch.y_TD
        bent = mapped(self.second_CDD, labels, y.relu())
        hard = self.hard(labels)
        y = torch.where(hard.unsqueeze(1), bent, y)
        return Batch(batch.x_TD, y, labels)


def stratified(bench: Bench, seed: int, *, lr: float, steps: int = 500, **spec: Any) -> dict[str, float]:
    """How many experts more a hard token passes than an easy one, and the error."""
    draw = Uneven(seed)
    layer = build(seed, spec, problem=draw)
    fit(layer, draw, seed, lr=lr, steps=steps)
    batch, mixed = test(layer, draw, seed)
    taken_TK = mixed.routing.indices_TK >= 0
    passed_T = taken_TK.sum(1).float()
    hard_T = draw.hard(batch.labels_T)
    by_hard, by_easy = passed_T[hard_T], passed_T[~hard_T]
    more = by_hard.mean() - by_easy.mean()
    missed = squared_error(mixed, batch)
    return {"more experts": float(more), "error": missed}


CLAIM = Claim(
    "Harder tokens pass more experts.", "experts that a hard token passes less those of an easy one",
    quantity="more experts", baseline=0.0, lower_is_better=False, tuned_by="error", provided=(no_worse("error", 0.01),),
    sides={"method": Side(stratified, STRATA, BALANCED),
           "baseline": Side(on_problem, {**TOP1, "problem": Uneven}, BALANCED)})
