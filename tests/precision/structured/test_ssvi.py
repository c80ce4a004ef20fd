"""SSVI against numerical integrals, draws and loops; the set keeps its size; what comes and what goes."""

import math

import pytest
import torch
from scipy import integrate
from torch.distributions import Normal, kl_divergence

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.parallel.team import Alone
from mixwell.precision.structured.ssvi import (
    Config,
    SparsePosterior,
    divergence,
    dropped_share,
    exchanged,
    signal_to_noise,
)
from tests.contracts._tools import fresh


@pytest.mark.parametrize("mean, std", [(0.3, 0.2), (-1.0, 0.5), (0.0, 1.0)])
def test_signal_to_noise_is_that_of_the_size_of_a_normal(mean, std):
    def moment(power):
        return integrate.quad(lambda w: abs(w) ** power * math.exp(-((w - mean) / std) ** 2 / 2), -9, 9)[0] / (
            std * math.sqrt(2 * math.pi))

    size = moment(1)
    expected = size / math.sqrt(moment(2) - size**2)
    found = signal_to_noise(torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_a_certain_weight_has_a_large_and_finite_signal():
    found = signal_to_noise(torch.tensor([1.0, 0.1]), torch.tensor([1e-7, 1e-2]))
    assert torch.isfinite(found).all() and found[0] > 1e5 and float(found[1]) == pytest.approx(10, rel=0.01)


def test_divergence_is_torchs(generator):
    mean = torch.randn(5, generator=generator, dtype=torch.float64)
    std = torch.rand(5, generator=generator, dtype=torch.float64) + 0.1
    prior = Normal(torch.zeros(5, dtype=torch.float64), 0.3)
    torch.testing.assert_close(divergence(mean, std, 0.3), kl_divergence(Normal(mean, std), prior).sum())
    matrix = SparsePosterior(4, 6, Config(density=0.5, kl=0.2, ramp=4, prior_std=0.3), generator)
    whole = divergence(matrix.weight[matrix.active], matrix.std()[matrix.active], 0.3)
    torch.testing.assert_close(matrix.penalty(), 0.2 * 0.25 * whole)
    matrix.steps += 9
    torch.testing.assert_close(matrix.penalty(), 0.2 * whole)
    assert SparsePosterior(4, 6, Config(kl=0), generator).penalty() is None


def test_training_draws_outputs_as_drawn_weights_would(generator):
    matrix = SparsePosterior(3, 5, Config(density=0.4, start_std=0.3), generator)
    x = torch.randn(1, 5, generator=generator)
    draws = matrix.train()(x.expand(40_000, -1), Context(generator=generator)).detach()
    std = matrix.std().detach() * matrix.active
    weights = matrix.dense().detach() + std * torch.randn(40_000, 3, 5, generator=generator)
    expected = (weights @ x[0]).T.contiguous().T
    torch.testing.assert_close(draws.mean(0), expected.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(draws.std(0), expected.std(0), atol=0.02, rtol=0)
    assert torch.equal(matrix.eval()(x, Context()), x @ matrix.dense().T)


def test_exchange_against_a_loop(generator):
    active = torch.rand(4, 6, generator=generator) < 0.5
    score, slope = torch.rand(2, 4, 6, generator=generator)
    found, came = exchanged(active, score, -slope, 3)
    places = [(i, j) for i in range(4) for j in range(6)]
    goes = sorted((p for p in places if active[p]), key=lambda p: float(score[p]))[:3]
    kept = [p for p in places if active[p] and p not in goes]
    comes = sorted((p for p in places if p not in kept), key=lambda p: -float(slope[p]))[:3]
    assert {p for p in places if found[p]} == {*kept, *comes} and {p for p in places if came[p]} == set(comes)
    assert int(found.sum()) == int(active.sum())


def test_the_share_falls_as_a_cosine_until_its_last_step():
    config = Config(steps=100, until=0.5, drop=0.4)
    assert dropped_share(0, config) == 0.4 and dropped_share(25, config) == pytest.approx(0.2)
    assert dropped_share(50, config) == dropped_share(80, config) == pytest.approx(0)


def test_the_set_keeps_its_size_and_moves_to_where_the_gradient_is(generator):
    """The paper's promise: as many weights at every step, and those that the loss asks for come in."""
    config = Config(density=0.2, steps=100, every=10, until=0.75, drop=0.8, kl=1e-6)
    matrix = SparsePosterior(6, 10, config, generator)
    target = torch.zeros(6, 10)
    target[:, :2] = torch.randn(6, 2, generator=generator)  # twelve weights, as many as are active
    descent = torch.optim.SGD(matrix.parameters(), lr=0.1, momentum=0.9)
    sizes, before = set(), matrix.active.clone()
    for _ in range(100):
        x = torch.randn(64, 10, generator=generator)
        loss = (matrix(x, Context(generator=generator)) - x @ target.T).square().mean() * 6 + matrix.penalty()
        descent.zero_grad()
        loss.backward()
        descent.step()
        matrix.after_step()
        sizes.add(int(matrix.active.sum()))
    assert sizes == {12} and int(matrix.active[:, :2].sum()) >= 10 > int(before[:, :2].sum())
    assert float((matrix.dense() - target).norm() / target.norm()) < 0.3


def test_what_comes_starts_at_zero_with_the_mean_spread(generator):
    matrix = SparsePosterior(4, 6, Config(density=0.5, steps=10, every=1, drop=1.0, until=1.0), fresh(3))
    with torch.no_grad():
        matrix.rho.copy_(torch.linspace(-5, -4, 24))
    before, level = matrix.active.clone(), matrix.rho.view(4, 6)[matrix.active].mean()
    matrix(torch.randn(5, 6, generator=generator), Context(generator=generator)).square().sum().backward()
    matrix.after_step()
    came = matrix.active & ~before
    assert came.any() and bool((matrix.weight[came] == 0).all())
    torch.testing.assert_close(matrix.rho.view(4, 6)[came], level.expand(int(came.sum())))
    still = matrix.active.clone()
    matrix.after_step()  # no pass since: nothing to go by
    assert torch.equal(still, matrix.active)


def test_refuses(generator):
    with pytest.raises(MixwellError, match=r"draws in training; give Context\(generator=...\)"):
        SparsePosterior(4, 6, Config(), generator).train()(torch.ones(1, 6), Context())
    several = Context(generator=generator, peers=Alone())
    with pytest.raises(MixwellError, match="gradients of its own process; train in one, or set drop: 0"):
        SparsePosterior(4, 6, Config(), generator).train()(torch.ones(1, 6), several)
    SparsePosterior(4, 6, Config(drop=0.0), generator).train()(torch.ones(1, 6), several)
    with pytest.raises(ValueError, match="density is 2"):
        Config(density=2)
    with pytest.raises(ValueError, match="prior_std is 0"):
        Config(prior_std=0)
