"""Loss-free bias balancing against a plain loop, and its promise: balance without a loss or a changed weight."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.loss_free_bias import Config, LossFreeBias, route, updated_bias


def loop(h, bias, k, scores, renormalise, scale):
    """One token in plain Python: {expert: weight}."""
    if scores == "sigmoid":
        s = [1 / (1 + math.exp(-v)) for v in h]
    else:
        s = [math.exp(v) / sum(math.exp(u) for u in h) for v in h]
    chosen = sorted(range(len(h)), key=lambda i: -(s[i] + bias[i]))[:k]
    total = sum(s[i] for i in chosen) if renormalise else 1.0
    return {i: scale * s[i] / total for i in chosen}


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
@pytest.mark.parametrize("renormalise", [False, True])
def test_agrees_with_a_double_loop(generator, scores, renormalise):
    logits = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    bias = torch.randn(5, generator=generator, dtype=torch.float64)
    routing = route(logits, bias, Config(k=2, scores=scores, renormalise=renormalise, scale=2.5))
    for t, row in enumerate(logits.tolist()):
        found = dict(zip(routing.indices_TK[t].tolist(), routing.weights_TK[t].tolist()))
        assert found == pytest.approx(loop(row, bias.tolist(), 2, scores, renormalise, 2.5))


def test_groups_are_ranked_by_what_the_bias_makes_of_them():
    logits, bias = torch.zeros(1, 6), torch.tensor([0.0, 0.0, 0.3, 0.2, 0.4, -0.3])
    chosen = route(logits, bias, Config(k=2, groups=3, groups_kept=1))
    assert sorted(chosen.indices_TK[0].tolist()) == [2, 3]
    torch.testing.assert_close(chosen.weights_TK, torch.full((1, 2), 0.5))
    with pytest.raises(ValueError, match="equal groups"):
        LossFreeBias(6, 5, Config(groups=2))


def test_gradient(generator):
    bias = torch.randn(5, generator=generator, dtype=torch.float64)
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: route(h, bias, Config(k=2)).dense_TE(), (logits,))
    assert torch.autograd.gradcheck(lambda h: route(h, bias, Config(k=1)).dense_TE(), (logits,))


def test_the_bias_chooses_and_never_weighs(generator):
    logits = torch.randn(6, 4, generator=generator)
    shifted = route(logits, torch.tensor([0.0, 0.0, 0.0, 9.0]), Config(k=1))
    assert (shifted.indices_TK == 3).all()
    torch.testing.assert_close(shifted.weights_TK[:, 0], logits.sigmoid()[:, 3])
    torch.testing.assert_close(shifted.scores_TE, logits.sigmoid())
    assert torch.equal(route(logits, torch.full((4,), 5.0), Config()).indices_TK,
                       logits.topk(2, dim=-1).indices)  # an equal bias is no bias


@pytest.mark.parametrize("rule", ["sign", "proportional"])
def test_update(rule):
    bias, load = [0.1, -0.2, 0.0, 0.5], [6, 2, 4, 4]
    found = updated_bias(torch.tensor(bias, dtype=torch.float64), torch.tensor(load),
                         Config(update_rate=0.01, rule=rule))
    steps = [math.copysign(1, 4 - c) if c != 4 else 0 for c in load] if rule == "sign" else [(4 - c) / 4 for c in load]
    assert found.tolist() == pytest.approx([b + 0.01 * s for b, s in zip(bias, steps)])


@pytest.mark.parametrize("rule", ["sign", "proportional"])
def test_repeated_updates_balance_a_skewed_router(generator, rule):
    router = LossFreeBias(6, 4, Config(k=1, update_rate=0.005 if rule == "sign" else 0.02, rule=rule), generator)
    x = torch.randn(400, 6, generator=generator) + 1
    with torch.no_grad():
        router.weight.copy_(torch.randn(4, 6, generator=generator) * 0.2 + torch.arange(4).unsqueeze(1) * 0.2)
    before = router(x, Context()).load_E().max()
    weights = router.weight.clone()
    for _ in range(300):
        router.update(router(x, Context()).load_E())
    assert before > 250 and router(x, Context()).load_E().max() < 130
    assert torch.equal(weights, router.weight)


def test_the_bias_is_saved_and_no_parameter(generator):
    router = LossFreeBias(6, 4, Config(), generator)
    router.update(torch.tensor([5, 1, 1, 1]))
    assert [name for name, _ in router.named_parameters()] == ["weight"]
    copy = LossFreeBias(6, 4, Config())
    copy.load_state_dict(router.state_dict())
    assert torch.equal(copy.bias, router.bias) and copy.bias.abs().min() > 0


@pytest.mark.parametrize("options, message", [
    ({"k": 0}, "at least 1"),
    ({"k": 1, "renormalise": True}, "without a gradient"),
    ({"update_rate": 0.0}, "above 0"),
    ({"scale": 0.0}, "above 0"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_refuses_a_load_of_another_size():
    with pytest.raises(ValueError, match="each of 4 experts"):
        LossFreeBias(6, 4, Config()).update(torch.ones(3))
