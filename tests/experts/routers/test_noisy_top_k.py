"""Noisy top-k against a double loop over tokens and experts, and its load estimate against counting."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.routers.noisy_top_k import Config, NoisyTopK, chance_to_be_chosen, cv_squared, route


def phi(z):
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def loop_chance(clean, noisy, std, k):
    """P(x, i) of one token."""
    out = []
    for i in range(len(clean)):
        others = sorted((h for j, h in enumerate(noisy) if j != i), reverse=True)
        out.append(phi((clean[i] - others[k - 1]) / std[i]) if k <= len(others) else 1.0)
    return out


@pytest.mark.parametrize("k", [1, 2, 4])
def test_chance_agrees_with_a_double_loop(generator, k):
    clean, noise = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    std = torch.rand(6, 4, generator=generator, dtype=torch.float64) + 0.3
    noisy = clean + noise * std
    found = chance_to_be_chosen(clean, noisy, std, k)
    expected = [loop_chance(c, n, s, k) for c, n, s in zip(clean.tolist(), noisy.tolist(), std.tolist())]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_gradient(generator):
    clean, noise = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    std = torch.rand(5, 4, generator=generator, dtype=torch.float64) + 0.3
    inputs = (clean.requires_grad_(), std.requires_grad_())
    assert torch.autograd.gradcheck(lambda c, s: cv_squared(chance_to_be_chosen(c, c + noise * s, s, 2).sum(0)), inputs)
    assert torch.autograd.gradcheck(lambda c: route(c, Config(k=2)).dense_TE(), (clean,))


def test_routing_agrees_with_the_softmax_over_the_kept(generator):
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    routing = route(logits, Config(k=2))
    for t, row in enumerate(logits.tolist()):
        best = sorted(range(4), key=lambda i: -row[i])[:2]
        total = sum(math.exp(row[i]) for i in best)
        assert routing.indices_TK[t].tolist() == best
        assert routing.weights_TK[t].tolist() == pytest.approx([math.exp(row[i]) / total for i in best])


def test_chance_is_the_frequency_over_new_draws_of_one_experts_noise(generator):
    """The paper's meaning of P(x, i): only expert i draws again, all others keep their noise."""
    clean, noise = torch.randn(2, 1, 4, generator=generator, dtype=torch.float64)
    std = torch.full((1, 4), 0.7, dtype=torch.float64)
    noisy = clean + noise * std
    for i in range(4):
        draws = noisy.repeat(20000, 1)
        draws[:, i] = clean[0, i] + 0.7 * torch.randn(20000, generator=generator, dtype=torch.float64)
        share = (draws.topk(2, dim=-1).indices == i).any(-1).double().mean()
        assert abs(share - chance_to_be_chosen(clean, noisy, std, 2)[0, i]) < 0.02


def trained(config, generator, tokens=64):
    router = NoisyTopK(6, 4, config, generator)
    with torch.no_grad():
        router.weight.mul_(50)
    return router.train(), torch.randn(tokens, 6, generator=generator)


def test_noise_spreads_choices_and_is_absent_in_evaluation(generator):
    router, x = trained(Config(), generator)
    first, second = (router(x, Context(generator=generator)) for _ in range(2))
    assert not torch.equal(first.logits_TE, second.logits_TE)
    router.eval()
    assert torch.equal(router(x, Context()).logits_TE, router.logits(x)) and not router(x, Context()).losses


def test_load_loss_leaves_padding_out_and_scales(generator):
    router, x = trained(Config(load=0.5), generator)
    noise = torch.randn(64, 4, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(64) < 40
    loss = router(x, Context(mask_T=mask, generator=torch.Generator().manual_seed(3))).losses["load"]
    clean = router.logits(x)
    std = torch.full_like(clean, math.log(2))  # softplus of the zero start of the noise weights
    load = torch.tensor([loop_chance(*rows, 2) for rows in zip(clean.tolist(), (clean + noise * std).tolist(),
                                                               std.tolist())])[mask].sum(0)
    torch.testing.assert_close(loss, 0.5 * load.var(correction=0) / load.mean() ** 2, rtol=1e-4, atol=1e-6)
    assert torch.autograd.grad(loss, router.noise_weight)[0].abs().max() > 0


def test_every_expert_chosen_gives_an_even_load(generator):
    router, x = trained(Config(k=4), generator)
    assert router(x, Context(generator=generator)).losses["load"] == 0


def test_no_load_loss_where_its_coefficient_is_zero(generator):
    router, x = trained(Config(load=0.0), generator)
    assert not router(x, Context(generator=generator)).losses


def test_refuses(generator):
    with pytest.raises(ValueError, match="at least 1"):
        Config(k=0)
    with pytest.raises(ValueError, match="0 or more"):
        Config(load=-1.0)
    router, x = trained(Config(), generator)
    with pytest.raises(MixwellError, match=r"give Context\(generator"):
        router(x, Context())
