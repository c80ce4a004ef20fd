"""Softmax or sigmoid top-k against a double loop, with what Mixtral's and Switch's papers say of it."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.routers.top_k import Config, TopK, route


def loop(h, k, scores, renormalise, scale):
    """One token in plain Python: {expert: weight}."""
    if scores == "softmax":
        top = max(h)
        total = sum(math.exp(v - top) for v in h)
        p = [math.exp(v - top) / total for v in h]
    else:
        p = [1 / (1 + math.exp(-v)) for v in h]
    chosen = sorted(range(len(h)), key=lambda i: -p[i])[:k]
    total = sum(p[i] for i in chosen) if renormalise else 1.0
    return {i: scale * p[i] / total for i in chosen}


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_agrees_with_a_double_loop(generator, scores, renormalise, scale):
    logits = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    routing = route(logits, Config(k=3, scores=scores, renormalise=renormalise, scale=scale))
    for t, row in enumerate(logits.tolist()):
        expected = loop(row, 3, scores, renormalise, scale)
        found = dict(zip(routing.indices_TK[t].tolist(), routing.weights_TK[t].tolist()))
        assert found.keys() == expected.keys()
        assert all(abs(found[i] - expected[i]) < 1e-12 for i in expected)


@pytest.mark.parametrize("config", [Config(k=2), Config(k=1), Config(k=2, scores="sigmoid", scale=1.5)])
def test_gradient(generator, config):
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: route(h, config).dense_TE(), (logits,))


def test_mixtral_softmax_over_the_kept_logits(generator):
    """Mixtral's Softmax(TopK(h)) is the renormalised full softmax."""
    logits = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    routing = route(logits, Config(k=2, renormalise=True))
    torch.testing.assert_close(routing.weights_TK, logits.topk(2, dim=-1).values.softmax(-1))


def test_switch_keeps_the_probability_as_the_gate(generator):
    logits = torch.randn(6, 8, generator=generator)
    torch.testing.assert_close(route(logits, Config(k=1)).weights_TK[:, 0], logits.softmax(-1).max(-1).values)


def test_groups_keep_tokens_inside_their_best_groups():
    logits = torch.tensor([[3.0, 2.9, 9.0, -9.0, 1.0, 1.0]]).double()  # best pair by sum of two: the first group
    routing = route(logits, Config(k=2, scores="sigmoid", groups=3, groups_kept=1))
    assert sorted(routing.indices_TK[0].tolist()) == [0, 1]
    assert torch.isfinite(routing.scores_TE).all()


def test_groups_may_be_ranked_by_their_best_score():
    logits = torch.tensor([[3.0, 2.9, 9.0, -9.0, 1.0, 1.0]]).double()
    config = Config(k=2, scores="sigmoid", groups=3, groups_kept=1, group_rank="best")
    assert sorted(route(logits, config).indices_TK[0].tolist()) == [2, 3]


def test_a_bias_shifts_the_logits(generator):
    router = TopK(6, 4, Config(bias=True), generator)
    x = torch.randn(9, 6, generator=generator)
    plain = router(x, Context()).logits_TE
    with torch.no_grad():
        router.bias.copy_(torch.tensor([0.0, 1.0, -2.0, 0.5]))
    torch.testing.assert_close(router(x, Context()).logits_TE, plain + router.bias)


def test_one_expert_with_a_weight_of_one_must_be_asked_for():
    routing = route(torch.tensor([[0.5, 2.0, 1.0]]), Config(k=1, renormalise=True, constant=True))
    assert routing.indices_TK.item() == 1 and routing.weights_TK.item() == 1


def test_jitter_acts_in_training_only(generator):
    router = TopK(6, 4, Config(jitter=0.5), generator)
    x = torch.randn(9, 6, generator=generator)
    still = router.eval()(x, Context()).scores_TE
    moved = router.train()(x, Context(generator=generator)).scores_TE
    assert torch.equal(still, router.eval()(x, Context()).scores_TE)
    assert (still - moved).abs().max() > 1e-4


def test_jitter_multiplies_by_a_uniform_factor_about_one(generator):
    router = TopK(4, 4, Config(jitter=0.25), generator)
    with torch.no_grad():
        router.weight.copy_(torch.eye(4))
    factors = router.train()(torch.ones(5000, 4), Context(generator=generator)).logits_TE
    assert 0.75 <= factors.min() < 0.751 and 1.249 < factors.max() <= 1.25
    assert factors.mean().item() == pytest.approx(1.0, abs=0.005)
    assert factors.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.02)
    with pytest.raises(MixwellError, match=r"TopK draws while training; give Context\(generator=...\)"):
        router(torch.ones(2, 4), Context())


def test_logits_are_float32_for_half_inputs(generator):
    router = TopK(6, 4, Config(), generator)
    routing = router(torch.randn(3, 6, generator=generator).bfloat16(), Context())
    assert routing.logits_TE.dtype == routing.weights_TK.dtype == torch.float32


@pytest.mark.parametrize("options, message", [
    ({"k": 1, "renormalise": True}, "without a gradient"),
    ({"k": 0}, "at least 1"),
    ({"scale": 0.0}, "above 0"),
    ({"groups": 2, "groups_kept": 3}, "1 to groups"),
    ({"jitter": 1.0}, "0 up to 1"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_refuses_more_experts_than_there_are():
    with pytest.raises(ValueError, match="choose 1 to 4"):
        TopK(6, 4, Config(k=5))
    with pytest.raises(ValueError, match="equal groups"):
        TopK(6, 4, Config(k=2, groups=4, groups_kept=1))
