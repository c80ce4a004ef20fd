"""What every balance rule of the catalogue promises.

Tags: `one-at-balance` (exactly 1 where experts share evenly); `own-inputs` (reads more than a routing, so that the
suite cannot make its inputs).
"""

import dataclasses

import pytest
import torch

from mixwell.core.routing import Context, Routing
from tests.contracts._tools import cases, example, fresh, poisoned_memory, same_config

BALANCE = "experts.balance"


def routing_from(logits):
    scores = logits.softmax(-1)
    weights, indices = scores.topk(2, dim=-1)
    return Routing(indices, weights, scores, logits)


@pytest.mark.parametrize("entry", cases(BALANCE))
def test_form(entry):
    values = example(entry)
    with poisoned_memory():
        loss = entry.load()(**values)
    assert loss.ndim == 0 and torch.isfinite(loss)
    assert torch.equal(loss, entry.load()(**values))
    assert same_config(values["config"])


@pytest.mark.parametrize("entry", cases(BALANCE, without={"own-inputs"}))
def test_gradient_reaches_the_logits(entry):
    values = example(entry)
    logits = torch.randn(12, 4, generator=fresh(1), dtype=torch.float64, requires_grad=True)
    rule = entry.load()

    def loss(h):
        return rule(routing_from(h), values["config"], Context())

    assert torch.autograd.gradcheck(loss, (logits,))
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("entry", cases(BALANCE, without={"own-inputs"}))
def test_padding_counts_in_nothing(entry):
    values = example(entry)
    logits = torch.randn(12, 4, generator=fresh(1), dtype=torch.float64)
    mask = torch.arange(12) < 9
    whole = entry.load()(routing_from(logits), values["config"], Context(mask_T=mask))
    cut = entry.load()(routing_from(logits[:9]), values["config"], Context())
    torch.testing.assert_close(whole, cut)


@pytest.mark.parametrize("entry", [p for p in cases(BALANCE) if "one-at-balance" in p.values[0].tags])
def test_one_at_balance_and_more_at_collapse(entry):
    config = example(entry)["config"]
    even = Routing(torch.arange(8).reshape(4, 2) % 4, torch.full((4, 2), 0.5), torch.full((4, 4), 0.25))
    torch.testing.assert_close(entry.load()(even, config, Context()), torch.tensor(1.0))
    scores = torch.tensor([[0.97, 0.01, 0.01, 0.01]]).expand(4, 4)
    collapsed = dataclasses.replace(even, indices_TK=torch.zeros(4, 1, dtype=torch.int64), weights_TK=scores[:, :1],
                                    scores_TE=scores)
    assert entry.load()(collapsed, config, Context()) > 3
