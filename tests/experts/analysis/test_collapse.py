"""Scatter against a loop in numpy, its behaviour under collapse, and dead and dominating experts."""

import numpy
import pytest
import torch

from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis.collapse import Config, collapse


def routing_of(experts_T, experts=4):
    slots = torch.as_tensor(experts_T).unsqueeze(1)
    return Routing(slots, torch.ones(slots.shape), torch.ones(len(slots), experts))


def test_agrees_with_a_loop(generator):
    hidden = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    choice = torch.randint(0, 3, (40,), generator=generator)
    found = collapse(routing_of(choice), hidden, Config(), Context())
    h, c = hidden.numpy(), choice.numpy()
    means = {e: h[c == e].mean(0) for e in range(3)}
    within = sum(numpy.outer(h[t] - means[c[t]], h[t] - means[c[t]]) for t in range(40)) / 40
    between = sum(numpy.outer(m - h.mean(0), m - h.mean(0)) for m in means.values()) / 3
    assert found["within"] == pytest.approx(within.trace()) and found["between"] == pytest.approx(between.trace())
    assert found["scatter_ratio"] == pytest.approx(numpy.trace(within @ numpy.linalg.pinv(between, hermitian=True)) / 3)
    assert found["experts_used"] == 3


def test_falls_as_tokens_crowd_around_their_experts_centroid(generator):
    choice = torch.arange(60) % 4
    centroids = torch.randn(4, 3, generator=generator)
    noise = torch.randn(60, 3, generator=generator)
    ratios = [collapse(routing_of(choice), centroids[choice] + s * noise, Config(), Context())["scatter_ratio"]
              for s in (1.0, 0.3, 0.05)]
    assert ratios[0] > ratios[1] > ratios[2] > 0
    assert collapse(routing_of(choice), centroids[choice], Config(), Context())["scatter_ratio"] == pytest.approx(0)


def test_is_blind_to_the_scale_of_the_representations(generator):
    hidden, choice = torch.randn(30, 3, generator=generator), torch.arange(30) % 4
    one, ten = (collapse(routing_of(choice), s * hidden, Config(), Context())["scatter_ratio"] for s in (1, 10))
    assert one == pytest.approx(ten)


def test_one_expert_for_all_has_no_scatter_between():
    found = collapse(routing_of([1] * 5), torch.randn(5, 2), Config(), Context())
    assert found["scatter_ratio"] is None and found["dominating"] == [1] and found["dead"] == [0, 2, 3]


def test_bounds_for_dead_and_dominating():
    routing = routing_of([0] * 9 + [1] * 5 + [2] * 4 + [3] * 2)
    hidden = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    found = collapse(routing, hidden, Config(dead=0.5, dominating=1.5), Context())
    assert found["dead"] == [3] and found["dominating"] == [0]
    found = collapse(routing, hidden, Config(dead=0.0, dominating=2.0), Context())
    assert found["dead"] == [] and found["dominating"] == []


def test_refuses_bounds_out_of_range():
    with pytest.raises(ValueError, match="1 or more"):
        Config(dominating=0.5)
    with pytest.raises(ValueError, match="0 to 1"):
        Config(dead=1.5)
