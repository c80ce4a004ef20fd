"""Ranks by output norm against a loop, the router that follows norms, and the wrong shape."""

import pytest
import torch

from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis.output_norm import Config, output_norm


def test_agrees_with_a_loop(generator):
    scores = torch.rand(25, 5, generator=generator)
    norms = torch.rand(25, 5, generator=generator)
    weights, indices = scores.topk(2, dim=-1)
    found = output_norm(Routing(indices, weights, scores), norms, Config(), Context())
    ranks, hits = [[0] * 5 for _ in range(2)], 0
    for row, norm in zip(indices.tolist(), norms.tolist()):
        order = sorted(range(5), key=lambda e: -norm[e])
        for k, e in enumerate(row):
            ranks[k][order.index(e)] += 1 / 25
            hits += order.index(e) < 2
    assert [pytest.approx(r) for r in found["ranks"]] == ranks
    assert found["hits"] == pytest.approx(hits / 50) and found["chance"] == 0.4
    both = torch.corrcoef(torch.stack([scores.flatten(), norms.flatten()]).double())[0, 1]
    assert found["score_correlation"] == pytest.approx(both.item())


def test_a_router_that_follows_the_norms_hits_always(generator):
    norms = torch.rand(10, 6, generator=generator)
    weights, indices = norms.topk(2, dim=-1)
    found = output_norm(Routing(indices, weights, norms), norms, Config(), Context())
    assert found["hits"] == 1 and found["ranks"] == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]


def test_refuses_norms_of_the_chosen_experts_alone(generator):
    scores = torch.rand(4, 5, generator=generator)
    weights, indices = scores.topk(2, dim=-1)
    with pytest.raises(ValueError, match="every expert's output norm"):
        output_norm(Routing(indices, weights, scores), torch.rand(4, 2), Config(), Context())
