"""Decoupled adapters: token by token against a loop, one source exactly, means of products and products of means."""

import pytest
import torch

from mixwell.merge.composition.decoupled_adapters import Config, Tuned, Update, decoupled_adapters, naive


def update(generator, scale=2.0):
    a = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    return Update(a, torch.randn(3, 2, generator=generator, dtype=torch.float64), scale)


def test_every_token_reads_its_own_updates(generator):
    models = [Tuned(update(generator), update(generator)) for _ in range(2)]
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    kinds = torch.tensor([-1, 0, 1, -1, 1, 0])
    shares = (0.3, 0.6)
    found = decoupled_adapters(x, kinds, weight, models, Config(coefficients=shares))
    for place, kind in enumerate(kinds.tolist()):
        expected = weight @ x[place]
        if kind == -1:
            for share, model in zip(shares, models):
                expected = expected + share * 2 * model.text.b_OR @ (model.text.a_RI @ x[place])
        else:
            own = models[kind].modality
            expected = expected + 2 * own.b_OR @ (own.a_RI @ x[place])
        torch.testing.assert_close(found[place], expected)
    leaf = weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: decoupled_adapters(x, kinds, w, models, Config()), leaf)


def test_one_model_is_the_source_itself(generator):
    model = Tuned(update(generator), update(generator))
    weight, x = torch.zeros(3, 4, dtype=torch.float64), torch.randn(5, 4, generator=generator, dtype=torch.float64)
    text = decoupled_adapters(x, torch.full((5,), -1), weight, [model], Config())
    torch.testing.assert_close(text, model.text(x))


def test_the_mean_of_products_is_no_product_of_means(generator):
    first, second = update(generator), update(generator)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    merged = naive([first, second])
    a, b = (first.a_RI + second.a_RI) / 2, (first.b_OR + second.b_OR) / 2
    torch.testing.assert_close(merged(x), 2 * x @ a.T @ b.T)
    assert not torch.allclose(merged(x), (first(x) + second(x)) / 2)
    with pytest.raises(ValueError, match="updates of one scale"):
        naive([first, update(generator, 1.0)])
    with pytest.raises(ValueError, match="1 coefficients came for 2 models"):
        decoupled_adapters(x, torch.zeros(5), torch.zeros(3, 4), [Tuned(first, first)] * 2, Config(coefficients=(1.0,)))
