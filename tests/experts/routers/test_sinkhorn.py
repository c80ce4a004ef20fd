"""Sinkhorn routing against a plain loop, and the balance that it promises."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.sinkhorn import Config, Sinkhorn, route, transport


def loop(logits, beta, rounds):
    """The plan after many rounds from ones, in plain Python."""
    tokens, experts = len(logits), len(logits[0])
    cost = [[math.exp(beta * v) for v in row] for row in logits]
    d1 = [1.0] * experts
    for _ in range(rounds):
        d0 = [1 / (tokens * sum(d1[e] * cost[t][e] for e in range(experts))) for t in range(tokens)]
        d1 = [1 / (experts * sum(d0[t] * cost[t][e] for t in range(tokens))) for e in range(experts)]
    return torch.tensor([[d0[t] * cost[t][e] * d1[e] for e in range(experts)] for t in range(tokens)],
                        dtype=torch.float64)


@pytest.mark.parametrize("start", ["warm", "ones"])
@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_plan_agrees_with_a_plain_loop(generator, start, sharpness):
    logits = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    plan, _ = transport(logits, Config(start=start, sharpness=sharpness, tolerance=1e-12, max_iterations=500))
    torch.testing.assert_close(plan.exp(), loop(logits.tolist(), sharpness, 500), rtol=1e-8, atol=1e-12)


def test_plan_has_even_margins_and_stands_large_logits(generator):
    logits = torch.randn(64, 8, generator=generator) * 300
    plan, _ = transport(logits.double(), Config(sharpness=0.05, tolerance=1e-10, max_iterations=5000))
    torch.testing.assert_close(plan.exp().sum(0), torch.full((8,), 1 / 8).double(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(plan.exp().sum(1), torch.full((64,), 1 / 64).double(), rtol=1e-4, atol=1e-6)
    assert torch.isfinite(transport(logits, Config())[0]).all()


def test_training_balances_what_the_scores_would_overload(generator):
    logits = torch.randn(256, 8, generator=generator) + torch.arange(8) * 0.7
    greedy = route(logits, Config(), balanced=False).load_E()
    balanced = route(logits, Config(), balanced=True).load_E()
    assert greedy.max() > 100 and balanced.max() < 50


def test_warm_start_needs_no_more_iterations(generator):
    """BlackMamba's claim for its start, on logits with popular experts."""
    counts = {}
    logits = torch.randn(512, 8, generator=generator) + 2 * torch.randn(8, generator=generator)
    for start in ("warm", "ones"):
        counts[start] = transport(logits, Config(start=start))[1]
    assert counts["warm"] <= counts["ones"] < 100
    assert transport(logits, Config(max_iterations=2))[1] == 2


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_the_plan_chooses_and_the_scores_weigh(generator, scores):
    logits = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    config = Config(k=2, scores=scores, tolerance=1e-10)
    routing = route(logits, config, balanced=True)
    plan = loop(logits.tolist(), 2.0, 500)
    for t in range(10):
        best = sorted(range(4), key=lambda e: -plan[t, e])[:2]
        assert routing.indices_TK[t].tolist() == best
        h = logits[t].tolist()
        gates = [1 / (1 + math.exp(-v)) for v in h] if scores == "sigmoid" else [
            math.exp(v) / sum(math.exp(u) for u in h) for v in h]
        assert routing.weights_TK[t].tolist() == pytest.approx([gates[e] for e in best])


def test_gradient_flows_through_the_scores_alone(generator):
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: route(h, Config(k=2), balanced=True).dense_TE(), (logits,))


def test_evaluation_is_greedy_and_padding_takes_no_part(generator):
    router, x = Sinkhorn(6, 4, Config(), generator), torch.randn(32, 6, generator=generator)
    with torch.no_grad():
        router.weight.mul_(60)
    assert torch.equal(router.eval()(x, Context()).indices_TK[:, 0], router.logits(x).argmax(-1))
    mask = torch.arange(32) < 20
    padded = router.train()(x, Context(mask_T=mask)).indices_TK
    assert torch.equal(padded[mask], router(x[mask], Context()).indices_TK)
    assert torch.equal(padded[~mask], router.eval()(x[~mask], Context()).indices_TK)
    assert not torch.equal(padded[mask], router(x[mask], Context()).indices_TK)


def test_no_token_and_one_expert(generator):
    assert route(torch.zeros(0, 4), Config(), balanced=True).indices_TK.shape == (0, 1)
    assert (route(torch.randn(5, 1, generator=generator), Config(), balanced=True).indices_TK == 0).all()


@pytest.mark.parametrize("options, message", [
    ({"k": 0}, "at least 1"), ({"max_iterations": 0}, "at least 1"),
    ({"sharpness": 0.0}, "above 0"), ({"tolerance": 0.0}, "above 0"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
