"""Gate entropies against a loop, and the identity between them."""

import math

import pytest
import torch

from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis.entropy import Config, entropy


def routing_of(scores):
    weights, indices = scores.topk(1, dim=-1)
    return Routing(indices, weights, scores)


def nats(p):
    return -sum(v * math.log(v) for v in p if v > 0)


def test_agrees_with_a_loop_and_scales_scores(generator):
    scores = torch.rand(9, 5, generator=generator, dtype=torch.float64) ** 6
    rows = [[v / sum(row) for v in row] for row in scores.tolist()]
    token = sum(map(nats, rows)) / 9
    mean_gate = nats([sum(column) / 9 for column in zip(*rows)])
    found = entropy(routing_of(scores), Config(bins=4), Context())
    assert found["token_nats"] == pytest.approx(token) and found["mean_gate_nats"] == pytest.approx(mean_gate)
    assert found["information_nats"] == pytest.approx(mean_gate - token)
    assert found["token_relative"] == pytest.approx(token / math.log(5))
    assert found["mean_gate_relative"] == pytest.approx(mean_gate / math.log(5))
    expected = [0.0] * 4
    for row in rows:
        expected[min(int(nats(row) / math.log(5) * 4), 3)] += 1 / 9
    assert found["histogram"] == pytest.approx(expected)


def test_sure_and_even_gates_carry_all_the_information():
    found = entropy(routing_of(torch.eye(4)), Config(), Context())
    assert found["information_nats"] == pytest.approx(math.log(4)) and found["histogram"][0] == 1


def test_uniform_gates_carry_none():
    found = entropy(routing_of(torch.full((3, 4), 0.25)), Config(), Context())
    assert found["information_nats"] == pytest.approx(0) and found["histogram"][-1] == 1


def test_refuses_no_bins():
    with pytest.raises(ValueError, match="at least 1"):
        Config(bins=0)


def test_no_token_gives_no_figure_and_an_empty_histogram():
    found = entropy(routing_of(torch.eye(4)), Config(bins=3), Context(mask_T=torch.zeros(4, dtype=torch.bool)))
    assert found.pop("histogram") == [0.0, 0.0, 0.0] and set(found.values()) == {None}
