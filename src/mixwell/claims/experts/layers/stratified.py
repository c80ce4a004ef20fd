"""Stratified mixture: harder tokens pass more experts, and the loss is no higher than a plain mixture's of equal size.

Paper: Towards Being Parameter-Efficient: A Stratified Sparsely Activated Transformer with Dynamic Capacity.
Tried: regression in sixteen clusters, eight of which ask for a linear map and eight for a two-layer ReLU network;
strata of four and four experts, top-1, against one of eight; mean number of experts that a token of a hard cluster
passes, against one of an easy cluster. Against it: no more experts for hard tokens, or an error higher than the plain
mixture's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.claims._judging import no_worse, provided
from mixwell.claims._methods import build, widen
from mixwell.claims._series import series
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import DIM, TOP1, Batch, Clusters, error, errors, fit, mapped, test
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator


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
        hard = self.hard(labels).unsqueeze(1)
        y = torch.where(hard, bent, y)
        return Batch(batch.x_TD, y, labels)


def measure(seed: int) -> tuple[float, float, float]:
    """(experts passed by a hard token, by an easy one, error)."""
    draw, weights = Uneven(seed), generator(seed, "layer")
    options = {"strata": (4, 4), "hidden_dim": 32, "balance": {"switch": 0.01}}
    layer = build("experts.layers.stratified", DIM, generator=weights, **options)
    widen([layer.gate_up_proj, layer.down_proj])
    fit(layer, draw, seed)
    batch, mixed = test(layer, draw, seed)
    passed = (mixed.routing.indices_TK >= 0).sum(1).float()
    hard = draw.hard(batch.labels_T)
    return float(passed[hard].mean()), float(passed[~hard].mean()), error(layer, draw, seed)


def claim(bench: Bench) -> Evidence:
    """Experts passed by hard tokens against easy ones."""
    hard, easy, ours = series(bench, measure)
    plain = errors(bench.seeds, TOP1, Uneven)
    evidence = weigh("Harder tokens pass more experts.", "experts passed by a token; baseline is that of easy tokens",
                     hard, easy, lower_is_better=False,
                     note="Hard tokens pass 0.4 to 0.6 more experts with two seeds and as many as easy ones with the "
                          "third; the error is lower than the plain mixture's with every seed.")
    return provided(evidence, no_worse(ours, plain, 0.0), "Its error is higher than the plain mixture's.",
                    method_error=ours, baseline_error=plain)
