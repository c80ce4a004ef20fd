"""Composed stochastic maps: integrals, gradients, laws of composition, and the noise that cancels when it is shared."""

import pytest
import torch

from mixwell.merge.composition.stochastic_maps import Affine, Config, example, integrated, learned, stochastic_maps


def numbers(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def test_the_likelihood_of_the_composite_is_the_integral(generator):
    parts = example(generator)
    whole = stochastic_maps(parts["second"], parts["first"], Config())
    for a, c in ((0.3, -1.0), (2.0, 0.5)):
        a, c = numbers(a, c)
        torch.testing.assert_close(integrated(parts["second"], parts["first"], a, c), whole.log_likelihood(a, c))


def test_the_gradient_by_parts_is_that_of_the_composite(generator):
    leaves = [torch.rand(1, generator=generator, dtype=torch.float64).squeeze().requires_grad_() for _ in range(6)]
    first, second = Affine(*leaves[:3]), Affine(*leaves[3:])
    a, c = numbers(0.7, 1.1)
    parts = torch.autograd.grad(integrated(second, first, a, c), leaves)
    whole = torch.autograd.grad(stochastic_maps(second, first, Config()).log_likelihood(a, c), leaves)
    torch.testing.assert_close(torch.stack(parts), torch.stack(whole), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shared", [False, True])
def test_composition_is_associative_and_has_an_identity(shared, generator):
    maps = [Affine(*torch.randn(3, generator=generator, dtype=torch.float64)) for _ in range(3)]
    config, one = Config(shared=shared), Affine(*numbers(1.0, 0.0, 0.0))
    f, g, h = maps
    left = stochastic_maps(stochastic_maps(h, g, config), f, config)
    right = stochastic_maps(h, stochastic_maps(g, f, config), config)
    torch.testing.assert_close(torch.stack(left), torch.stack(right))
    kept = stochastic_maps(one, f, config)
    torch.testing.assert_close(torch.stack([kept.w, kept.u, kept.s.abs()]), torch.stack([f.w, f.u, f.s.abs()]))


def test_one_noise_cancels_where_two_add_up():
    turned = Affine(*numbers(-1.0, 5.0, 10.0))  # x -> N(5 - x, 10^2) twice
    assert float(stochastic_maps(turned, turned, Config(shared=True)).s) == 0
    assert float(stochastic_maps(turned, turned, Config()).s) == pytest.approx(10 * 2**0.5)


def test_a_learner_raises_the_likelihood_and_asks_for_a_better_input():
    start = Affine(*numbers(0.5, 0.0, 1.0))
    a, c = numbers(1.0, 3.0)
    better, request = learned(start, a, c, 0.01)
    assert float(better.log_likelihood(a, c)) > float(start.log_likelihood(a, c))
    assert float(start.log_likelihood(request, c)) > float(start.log_likelihood(a, c))
    torch.testing.assert_close(better.u, torch.tensor(0.01 * 2.5, dtype=torch.float64))  # (c - mean) / s^2
