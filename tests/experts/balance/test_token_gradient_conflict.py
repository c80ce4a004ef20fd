"""Token gradients against looped autograd, cosines from factors against whole gradients, and the loss's direction."""

import dataclasses
import math

import pytest
import torch

from mixwell.core.routing import Context, Routing
from mixwell.experts.balance.token_gradient_conflict import (
    Config,
    factor_cosines,
    gradient_cosines,
    token_gradient_conflict,
)
from mixwell.experts.routers.top_k import Config as TopKConfig
from mixwell.experts.routers.top_k import route

EXPERTS = torch.tensor([0, 1, 0, 2, 1, 0, 0, 1])  # of each slot; expert 3 has none


def test_cosines_from_factors_equal_those_of_looped_autograd(generator):
    weights = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    target = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    gradients, deltas = [], []
    for n, e in enumerate(EXPERTS.tolist()):
        y = weights[e] @ x[n]
        (gradient,) = torch.autograd.grad((y - target[n]).square().sum(), weights)
        gradients.append(gradient[e].flatten())
        deltas.append(2 * (y - target[n]).detach())
    found = factor_cosines(torch.stack(deltas), x, EXPERTS, 4)
    for n, e in enumerate(EXPERTS.tolist()):
        own = [g for g, other in zip(gradients, EXPERTS.tolist()) if other == e]
        mean = sum(own) / len(own)
        expected = float(gradients[n] @ mean / gradients[n].norm() / mean.norm())
        assert abs(found[n].item() - expected) < 1e-12
    torch.testing.assert_close(gradient_cosines(torch.stack(gradients), EXPERTS, 4), found)
    by_vmap = torch.func.vmap(torch.func.grad(lambda w, a, b: (w @ a - b).square().sum()))(
        weights.detach()[EXPERTS], x, target)
    torch.testing.assert_close(by_vmap.flatten(1), torch.stack(gradients))


@pytest.mark.parametrize("threshold", [-0.3, 0.0, 0.4])
def test_loss_agrees_with_a_loop_and_has_its_gradient(generator, threshold):
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    cosines = 2 * torch.rand(6, 2, generator=generator, dtype=torch.float64) - 1

    def loss(h):
        return token_gradient_conflict(route(h, TopKConfig()), Config(threshold=threshold), Context(), cosines)

    terms = []
    for h, row, cos in zip(logits.tolist(), route(logits, TopKConfig()).indices_TK.tolist(), cosines.tolist()):
        for e, c in zip(row, cos):
            if c < threshold:
                terms.append(h[e] + math.log(sum(math.exp(-v) for v in h)))
    assert terms and abs(loss(logits).item() - sum(terms) / len(terms)) < 1e-12
    assert torch.autograd.gradcheck(loss, (logits,))


def test_a_step_down_it_lowers_the_current_experts_probability_for_conflicting_tokens_alone(generator):
    logits = torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    routing = route(logits, TopKConfig(k=1))
    token_gradient_conflict(routing, Config(), Context(), torch.tensor([[-0.5], [0.5]])).backward()
    after = (logits - 0.1 * logits.grad).softmax(-1).gather(1, routing.indices_TK)
    before = logits.softmax(-1).gather(1, routing.indices_TK)
    assert after[0] < before[0] and after[1] == before[1]


def test_no_conflict_no_loss_and_padding_and_empty_slots_never_conflict(generator):
    routing = route(torch.randn(3, 4, generator=generator), TopKConfig(k=1))
    cosines = torch.full((3, 1), -1.0)
    assert token_gradient_conflict(routing, Config(), Context(), -cosines) == 0
    mask = torch.tensor([True, False, False])
    alone = Routing(*(getattr(routing, f)[:1] for f in ("indices_TK", "weights_TK", "scores_TE", "logits_TE")))
    expected = token_gradient_conflict(alone, Config(), Context(), cosines[:1])
    torch.testing.assert_close(token_gradient_conflict(routing, Config(), Context(mask_T=mask), cosines), expected)
    emptied = dataclasses.replace(routing, indices_TK=routing.indices_TK.masked_fill(~mask.unsqueeze(1), -1))
    torch.testing.assert_close(token_gradient_conflict(emptied, Config(), Context(), cosines), expected)


def test_a_token_alone_with_its_expert_agrees_with_itself(generator):
    gradients = torch.randn(3, 6, generator=generator)
    torch.testing.assert_close(gradient_cosines(gradients, torch.arange(3), 3), torch.ones(3))


def test_refusals(generator):
    with pytest.raises(ValueError, match="-1 to 1"):
        Config(threshold=2.0)
    with pytest.raises(ValueError, match="which a backward pass gives"):
        token_gradient_conflict(route(torch.randn(2, 3, generator=generator), TopKConfig()), Config(), Context())
    routing = dataclasses.replace(route(torch.randn(2, 3, generator=generator), TopKConfig()), logits_TE=None)
    with pytest.raises(ValueError, match="leave it out"):
        token_gradient_conflict(routing, Config(), Context(), torch.zeros(2, 2))
