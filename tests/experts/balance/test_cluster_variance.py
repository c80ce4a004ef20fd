"""Cluster variance against a loop, with clusters of one expert, and what its gradient does."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.balance.cluster_variance import Config, cluster_variance
from mixwell.experts.routers.top_k import Config as TopKConfig
from mixwell.experts.routers.top_k import route


def spread_loop(p, clusters, rho):
    size = len(p) // clusters
    groups = [p[c * size : (c + 1) * size] for c in range(clusters)]
    means = [sum(g) / size for g in groups]
    within = sum(sum((v - m) ** 2 for v in g) / size for g, m in zip(groups, means)) / clusters
    best = sorted(means, reverse=True)
    return within * math.exp(-rho * (best[0] - best[1])) if clusters > 1 else within


@pytest.mark.parametrize("clusters", [1, 2, 3])
@pytest.mark.parametrize("rho", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("over", ["batch", "token"])
def test_agrees_with_a_loop(generator, clusters, rho, over):
    routing = route(torch.randn(7, 6, generator=generator, dtype=torch.float64), TopKConfig(k=2))
    rows = routing.scores_TE.tolist()
    if over == "batch":
        rows = [[sum(column) / len(rows) for column in zip(*rows)]]
    expected = 36 * sum(spread_loop(row, clusters, rho) for row in rows) / len(rows)
    found = cluster_variance(routing, Config(clusters=clusters, rho=rho, over=over), Context())
    assert abs(found.item() - expected) < 1e-12


@pytest.mark.parametrize("over", ["batch", "token"])
def test_gradient(generator, over):
    logits = torch.randn(5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    config = Config(clusters=3, over=over)
    assert torch.autograd.gradcheck(lambda h: cluster_variance(route(h, TopKConfig()), config, Context()), (logits,))


def test_one_expert_a_cluster_is_a_plain_mixture(generator):
    routing = route(torch.randn(5, 6, generator=generator), TopKConfig())
    assert cluster_variance(routing, Config(clusters=6), Context()) == 0


def test_descending_it_evens_clusters_inside_and_parts_them():
    logits = torch.tensor([[2.0, 1.0, 0.0, -0.5]] * 4, dtype=torch.float64)
    for _ in range(200):
        logits = logits.detach().requires_grad_()
        cluster_variance(route(logits, TopKConfig()), Config(rho=2.0), Context()).backward()
        logits = logits - 0.5 * logits.grad
    p = logits.detach().softmax(-1)[0]
    start = torch.tensor([2.0, 1.0, 0.0, -0.5]).double().softmax(-1)
    assert (p[0] - p[1]).abs() < 0.2 * (start[0] - start[1]).abs()
    assert p[:2].sum() > 0.8


def test_refusals(generator):
    with pytest.raises(ValueError, match="0 or more"):
        Config(rho=-1.0)
    with pytest.raises(ValueError, match="at least 1"):
        Config(clusters=0)
    with pytest.raises(ValueError, match="do not divide"):
        cluster_variance(route(torch.randn(5, 6, generator=generator), TopKConfig()), Config(clusters=4), Context())
