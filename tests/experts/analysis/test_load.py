"""The load against a loop, at its two extremes."""

import math

import pytest
import torch

from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis.load import Config, load


def test_agrees_with_a_loop(generator):
    indices = torch.randint(-1, 5, (20, 1), generator=generator)
    found = load(Routing(indices, torch.ones(20, 1), torch.ones(20, 5)), Config(), Context())
    counts = [indices[:, 0].tolist().count(e) for e in range(5)]
    mean = sum(counts) / 5
    assert found["counts"] == counts and found["shares"] == pytest.approx([c / sum(counts) for c in counts])
    assert found["max_over_mean"] == pytest.approx(max(counts) / mean)
    assert found["cv"] == pytest.approx(math.sqrt(sum((c - mean) ** 2 for c in counts) / 5) / mean)
    nats = -sum(c / sum(counts) * math.log(c / sum(counts)) for c in counts if c)
    assert found["effective_experts"] == pytest.approx(math.exp(nats))
    assert found["empty_slots"] == pytest.approx(indices[:, 0].tolist().count(-1) / 20)


@pytest.mark.parametrize("indices, effective, worst, cv", [
    ([[0, 1], [2, 3], [0, 1], [2, 3]], 4.0, 1.0, 0.0), ([[0], [0], [0], [0]], 1.0, 4.0, math.sqrt(3)),
])
def test_extremes(indices, effective, worst, cv):
    slots = torch.tensor(indices)
    found = load(Routing(slots, torch.ones(slots.shape), torch.ones(4, 4)), Config(), Context())
    assert (found["effective_experts"], found["max_over_mean"], found["cv"]) == pytest.approx((effective, worst, cv))
    assert found["experts_per_token"] == slots.shape[1]


def test_padding_and_empty_slots_are_no_choices():
    slots = torch.tensor([[0, 1], [2, -1], [3, -1], [1, 0]])
    mask = torch.tensor([True, True, True, False])
    found = load(Routing(slots, torch.ones(4, 2), torch.ones(4, 4)), Config(), Context(mask_T=mask))
    assert found["counts"] == [1, 1, 1, 1]
    assert found["experts_per_token"] == pytest.approx(4 / 3) and found["empty_slots"] == pytest.approx(2 / 6)
