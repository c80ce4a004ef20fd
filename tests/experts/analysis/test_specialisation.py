"""Specialisation against a loop, its extremes, and the groups it leaves out."""

import math

import pytest
import torch

from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis.specialisation import Config, specialisation


def routing_of(indices, experts=4):
    slots = torch.as_tensor(indices)
    return Routing(slots, torch.ones(slots.shape), torch.ones(len(slots), experts))


@pytest.mark.parametrize("by", ["domain", "token"])
def test_agrees_with_a_loop(generator, by):
    indices = torch.rand(40, 4, generator=generator).topk(2, dim=-1).indices
    keys = torch.randint(3, 6, (40,), generator=generator)
    context = Context(labels_T=keys) if by == "domain" else Context(token_ids_T=keys)
    found = specialisation(routing_of(indices), Config(by=by), context)
    slots = [(g, e) for g, row in zip(keys.tolist(), indices.tolist()) for e in row]
    p = {cell: slots.count(cell) / 80 for cell in set(slots)}
    mass = {side: {v: sum(q for c, q in p.items() if c[side] == v) for v in range(6)} for side in (0, 1)}
    information = sum(q * math.log(q / mass[0][g] / mass[1][e]) for (g, e), q in p.items())
    assert found["groups"] == [3, 4, 5] and found["information_nats"] == pytest.approx(information)
    for g, shares, top, tokens in zip([3, 4, 5], found["shares"], found["top_share"], found["tokens"]):
        expected = [p.get((g, e), 0) / mass[0][g] for e in range(4)]
        assert shares == pytest.approx(expected) and top == pytest.approx(max(expected))
        assert tokens == keys.tolist().count(g)
    weighted = sum(s * n for s, n in zip(found["top_share"], found["tokens"])) / 40
    assert found["mean_top_share"] == pytest.approx(weighted)


def test_one_expert_a_domain_carries_all_the_information():
    found = specialisation(routing_of([[0], [0], [2], [2]]), Config(), Context(labels_T=torch.tensor([0, 0, 1, 1])))
    assert found["information_nats"] == pytest.approx(math.log(2)) and found["top_expert"] == [0, 2]


def test_the_same_use_in_every_domain_carries_none():
    found = specialisation(routing_of([[0], [1], [0], [1]]), Config(), Context(labels_T=torch.tensor([0, 0, 1, 1])))
    assert found["information_nats"] == pytest.approx(0)


def test_rare_tokens_are_left_out():
    context = Context(token_ids_T=torch.tensor([7, 7, 7, 9]))
    found = specialisation(routing_of([[0], [0], [1], [2]]), Config(by="token", least=2), context)
    assert found["groups"] == [7] and found["shares"] == [pytest.approx([2 / 3, 1 / 3, 0, 0])]


@pytest.mark.parametrize("by, field", [("domain", "labels_T"), ("token", "token_ids_T")])
def test_refuses_missing_groups(by, field):
    with pytest.raises(ValueError, match=field):
        specialisation(routing_of([[0]]), Config(by=by), Context())


def test_refuses_a_bound_below_one():
    with pytest.raises(ValueError, match="at least 1"):
        Config(least=0)
