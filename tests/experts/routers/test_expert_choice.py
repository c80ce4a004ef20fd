"""Expert choice against a double loop, and the loads that it promises."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.expert_choice import Config, ExpertChoice, route


def loop(logits, factor):
    """{(token, expert): weight} in plain Python."""
    tokens, experts = len(logits), len(logits[0])
    scores = []
    for row in logits:
        total = sum(math.exp(v) for v in row)
        scores.append([math.exp(v) / total for v in row])
    slots = min(tokens, max(1, math.ceil(factor * tokens / experts)))
    chosen = {}
    for e in range(experts):
        for t in sorted(range(tokens), key=lambda t: -scores[t][e])[:slots]:
            chosen[t, e] = scores[t][e]
    return chosen


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.0, 5.0])
def test_agrees_with_a_double_loop(generator, factor):
    logits = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    routing = route(logits, Config(capacity_factor=factor))
    expected = torch.zeros(9, 5, dtype=torch.float64)
    for (t, e), weight in loop(logits.tolist(), factor).items():
        expected[t, e] = weight
    torch.testing.assert_close(routing.dense_TE(), expected)
    assert ((routing.indices_TK >= 0).sum(1) == (expected > 0).sum(1)).all()


def test_gradient(generator):
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: route(h, Config(capacity_factor=1.5)).dense_TE(), (logits,))


def test_every_expert_has_the_same_load_however_skewed_the_scores(generator):
    logits = torch.randn(64, 8, generator=generator) + torch.arange(8) * 3
    assert route(logits, Config(capacity_factor=2.0)).load_E().tolist() == [16] * 8
    per_token = (route(logits, Config(capacity_factor=2.0)).indices_TK >= 0).sum(1)
    assert per_token.unique().numel() > 1  # some tokens get more computation than others


def test_full_capacity_is_the_dense_mixture(generator):
    routing = route(torch.randn(6, 4, generator=generator), Config(capacity_factor=4.0))
    torch.testing.assert_close(routing.dense_TE(), routing.scores_TE)


def test_permuting_tokens_permutes_the_routing(generator):
    logits, order = torch.randn(12, 4, generator=generator), torch.randperm(12, generator=generator)
    torch.testing.assert_close(route(logits, Config()).dense_TE()[order], route(logits[order], Config()).dense_TE())


def test_padding_is_never_taken(generator):
    logits = torch.randn(12, 4, generator=generator)
    mask = torch.arange(12) < 8
    routing = route(logits, Config(capacity_factor=1.0), mask)
    assert (routing.indices_TK[~mask] == -1).all() and routing.load_E().tolist() == [2] * 4
    torch.testing.assert_close(routing.dense_TE()[mask], route(logits[mask], Config(capacity_factor=1.0)).dense_TE())
    assert route(logits, Config(), torch.zeros(12, dtype=torch.bool)).load_E().sum() == 0


def test_module_routes_by_its_logits(generator):
    router, x = ExpertChoice(6, 4, Config(), generator), torch.randn(8, 6, generator=generator)
    assert torch.equal(router(x, Context()).indices_TK, route(router.logits(x), Config()).indices_TK)
    assert router.experts_per_token == 2.0


def test_refuses():
    with pytest.raises(ValueError, match="above 0"):
        Config(capacity_factor=0.0)
    with pytest.raises(ValueError, match="at most 4"):
        ExpertChoice(6, 4, Config(capacity_factor=5.0))
