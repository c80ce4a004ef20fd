"""The ranking loss is the likelihood of an order, learning finds an order that is there, and nobody starves."""

import itertools
import math

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.serve.scheduling.learned_order import Config, LearnedOrder, describe, example, labels, list_mle
from mixwell.serve.scheduling.ranked import Ranked
from mixwell.serve.scheduling.simulate import Job
from mixwell.serve.scheduling.stall_free import Config as StepConfig


def by_hand(scores, wanted):
    """The loss by its definition, for labels without ties."""
    order = sorted(range(len(scores)), key=lambda place: -wanted[place])
    loss = 0.0
    for at, place in enumerate(order):
        loss += math.log(sum(math.exp(scores[other]) for other in order[at:])) - scores[place]
    return loss


def test_the_loss_is_its_definition_with_its_gradient():
    draws = generator(1)
    scores = torch.randn(5, generator=draws, dtype=torch.float64, requires_grad=True)
    wanted = torch.tensor([3, 9, 1, 7, 5])
    loss = list_mle(scores, wanted, draws)
    assert loss.item() == pytest.approx(by_hand(scores.tolist(), wanted.tolist()))
    assert torch.autograd.gradcheck(lambda s: list_mle(s, wanted, generator(2)), scores)


def test_the_losses_of_all_orders_are_probabilities():
    scores = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64)
    orders = [torch.tensor(order) for order in itertools.permutations(range(3))]
    total = sum(math.exp(-float(list_mle(scores, order, generator(0)))) for order in orders)
    assert total == pytest.approx(1.0)


def test_short_answers_have_large_labels_and_near_ones_the_same():
    found = labels(torch.tensor([1, 9, 10, 95, 8192, 99999]), 8192, 10)
    assert found.tolist() == [819, 819, 818, 810, 0, 0]


def test_ties_leave_no_trace_on_the_scores():
    """Labels that are all the same, in many random orders: no score is pushed up or down."""
    scores = torch.zeros(4, requires_grad=True)
    draws = generator(3)
    torch.stack([list_mle(scores, torch.ones(4), draws) for _ in range(3000)]).mean().backward()
    assert scores.grad.abs().max() < 0.05


def test_learning_finds_the_order_of_lengths():
    draws = generator(4)
    features = torch.randn(200, 3, generator=draws)
    lengths = (100 * (0.8 * features[:, 1]).exp()).long() + 1
    order = LearnedOrder(3, Config(hidden=8, epochs=8, lr=0.02, slate=20, longest=1000, bucket=5), draws)
    order.fit(features[:150], lengths[:150], draws)
    scores = order(features[150:])
    assert torch.corrcoef(torch.stack([scores, lengths[150:].float().log()]))[0, 1] < -0.9
    values = example(generator(0))
    one, other = (LearnedOrder(4, values["config"], generator(5)) for _ in range(2))
    for each in (one, other):
        each.fit(values["features_NF"], values["lengths_N"], generator(6))
    assert torch.equal(one(values["features_NF"]), other(values["features_NF"]))
    with pytest.raises(ValueError, match="two or more"):
        one.fit(values["features_NF"][:1], values["lengths_N"][:1], draws)
    with pytest.raises(ValueError, match="slate is 1"):
        Config(slate=1)


def test_a_prompt_is_described_by_its_ids_and_its_length():
    found = describe([1, 4, 4, 9], 6)
    assert found.expm1().tolist() == pytest.approx([0, 1, 0, 0, 3, 4])


def test_whoever_is_idle_too_long_is_served_for_a_spell():
    """One place; a row with the worst score waits while better ones are there, then has its spell."""
    long = Job(0.0, 1, 50, score=-1.0, read=1, told=[0.0])
    short = [Job(0.0, 1, 50, score=1.0, read=1, told=[0.0])]
    for patience, expected in ((None, "s" * 12), (3, "ssss" + "ll" + "ssss" + "ll")):
        policy = Ranked(StepConfig(budget=1, rows=1), patience=patience, spell=2)
        served = [policy.plan([long, *short]) for _ in range(12)]
        assert "".join("l" if plan[0][0] is long else "s" for plan in served) == expected
    with pytest.raises(ValueError, match="spell is 0"):
        Ranked(StepConfig(), spell=0)
    with pytest.raises(ValueError, match="patience is 0"):
        Ranked(StepConfig(), patience=0)
