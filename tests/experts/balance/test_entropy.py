"""The entropy losses against loops, their ranges, and what each of them asks of the gate."""

import dataclasses
import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.balance.entropy import Config, entropy
from mixwell.experts.routers.top_k import Config as TopKConfig
from mixwell.experts.routers.top_k import route


def entropy_loop(p):
    return -sum(v * math.log(v) for v in p)


def loop(logits, rule):
    gates = []
    for row in logits:
        total = sum(math.exp(v) for v in row)
        gates.append([math.exp(v) / total for v in row])
    mean = [sum(column) / len(gates) for column in zip(*gates)]
    token = sum(map(entropy_loop, gates)) / len(gates)
    return {"token": token, "batch": -entropy_loop(mean), "mutual_information": token - entropy_loop(mean)}[rule]


@pytest.mark.parametrize("rule", ["mutual_information", "token", "batch"])
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_agrees_with_a_loop_and_has_its_gradient(generator, rule, scores):
    logits = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def loss(h):
        return entropy(route(h, TopKConfig(scores=scores)), Config(rule=rule), Context())

    assert abs(loss(logits).item() - loop(logits.tolist(), rule)) < 1e-12
    assert torch.autograd.gradcheck(loss, (logits,))


def test_mutual_information_is_minimal_where_tokens_are_sure_and_experts_even():
    sure_and_even, uniform, collapsed = 60 * torch.eye(4), torch.zeros(4, 4), 60 * torch.eye(4)[:1].expand(4, 4)
    config = Config()
    values = [entropy(route(h, TopKConfig(k=1)), config, Context()).item() for h in (sure_and_even, uniform, collapsed)]
    torch.testing.assert_close(values, [-math.log(4), 0.0, 0.0], atol=1e-6, rtol=0)


def test_token_rule_alone_is_content_with_collapse():
    collapsed = (60 * torch.eye(4))[:1].expand(4, 4)
    routing = route(collapsed, TopKConfig(k=1))
    assert entropy(routing, Config(rule="token"), Context()) < 1e-6
    assert entropy(routing, Config(rule="batch"), Context()) > -1e-6  # the worst: -log 4 is the best


def test_a_router_without_logits_has_its_scores_scaled(generator):
    routing = route(torch.randn(6, 4, generator=generator, dtype=torch.float64), TopKConfig())
    bare = dataclasses.replace(routing, logits_TE=None, scores_TE=3 * routing.scores_TE)
    for rule in ("mutual_information", "token", "batch"):
        torch.testing.assert_close(entropy(bare, Config(rule=rule), Context()),
                                   entropy(routing, Config(rule=rule), Context()))


def test_all_padding_gives_zero(generator):
    routing = route(torch.randn(3, 4, generator=generator), TopKConfig())
    assert entropy(routing, Config(), Context(mask_T=torch.zeros(3, dtype=torch.bool))) == 0


def test_refuses_an_unknown_rule_from_a_recipe():
    from mixwell.core.config import from_dict
    from mixwell.core.errors import MixwellError

    with pytest.raises(MixwellError, match="not one of mutual_information, token, batch"):
        from_dict(Config, {"rule": "tokens"})
