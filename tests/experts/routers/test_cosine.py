"""Cosine routing against a plain loop, and its promise: only directions count."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.routers.cosine import Config, Cosine, cosine_logits, route


def loop(z, e, temperature, perturb):
    """One logit in plain Python."""
    dot = sum(a * b for a, b in zip(z, e))
    return dot / (math.hypot(*z) + perturb) / (math.hypot(*e) + perturb) / temperature


def tensors(generator):
    z = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    return z, torch.randn(4, 3, generator=generator, dtype=torch.float64), torch.tensor(0.3).double()


@pytest.mark.parametrize("perturb", [0.0, 0.1])
def test_logits_agree_with_a_double_loop(generator, perturb):
    z, e, temperature = tensors(generator)
    expected = [[loop(a, b, temperature.item(), perturb) for b in e.tolist()] for a in z.tolist()]
    torch.testing.assert_close(cosine_logits(z, e, temperature, perturb), torch.tensor(expected).double())


@pytest.mark.parametrize("config", [Config(k=2), Config(k=1), Config(k=2, scores="sigmoid")])
def test_gradient(generator, config):
    inputs = tuple(t.requires_grad_() for t in tensors(generator))
    assert torch.autograd.gradcheck(lambda *t: route(cosine_logits(*t), config).dense_TE(), inputs)


@pytest.mark.parametrize("scores, expected", [("softmax", 0.3), ("sigmoid", 0.07)])
def test_weights_and_start_temperature(generator, scores, expected):
    router, x = Cosine(6, 4, Config(k=1, scores=scores), generator), torch.randn(5, 6, generator=generator)
    routing = router(x, Context())
    assert router.temperature.item() == pytest.approx(expected) and router.temperature.requires_grad
    gates = routing.logits_TE.softmax(-1) if scores == "softmax" else routing.logits_TE.sigmoid()
    torch.testing.assert_close(routing.weights_TK[:, 0], gates.max(-1).values)


def test_two_experts_share_the_whole_weight(generator):
    routing = Cosine(6, 4, Config(k=2), generator)(torch.randn(5, 6, generator=generator), Context())
    torch.testing.assert_close(routing.weights_TK, routing.logits_TE.topk(2, dim=-1).values.softmax(-1))


def test_scores_do_not_see_a_tokens_length(generator):
    router, x = Cosine(6, 4, Config(k=2), generator), torch.randn(5, 6, generator=generator)
    torch.testing.assert_close(router(x * 37, Context()).scores_TE, router(x, Context()).scores_TE)
    perturbed = Cosine(6, 4, Config(k=2, perturb=0.1), generator)
    difference = perturbed(x * 37, Context()).scores_TE - perturbed(x, Context()).scores_TE
    assert difference.abs().max() > 1e-3


def test_perturbed_norms_stand_a_token_of_zeros(generator):
    router = Cosine(6, 4, Config(k=2, perturb=0.1), generator)
    assert router(torch.zeros(2, 6), Context()).logits_TE.abs().max() == 0
    assert torch.isfinite(Cosine(6, 4, Config(), generator)(torch.zeros(2, 6), Context()).logits_TE).all()


def test_sizes_and_temperature_options(generator):
    assert Cosine(6, 16, Config(), generator).projection.shape == (8, 6)
    assert Cosine(6, 3, Config(), generator).projection.shape == (2, 6)
    router = Cosine(6, 16, Config(route_dim=5, temperature=1.5, learn_temperature=False), generator)
    assert router.embedding.shape == (16, 5)
    assert router.temperature.item() == 1.5 and not router.temperature.requires_grad
    with torch.no_grad():
        router.temperature.fill_(-1.0)  # where training may carry it
    x = torch.randn(3, 6, generator=generator)
    cosines = torch.nn.functional.cosine_similarity((x @ router.projection.T).unsqueeze(1), router.embedding, dim=-1)
    torch.testing.assert_close(router(x, Context()).logits_TE, cosines / 0.01)


@pytest.mark.parametrize("options, message", [
    ({"k": 0}, "at least 1"), ({"route_dim": 1}, "at least 2"),
    ({"temperature": 0.0}, "above 0.01"), ({"perturb": -0.1}, "0 or more"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
