"""Turbo-VBI against sums over all supports and closed forms; regression finds runs; penalties; pruning."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.precision.structured.turbo_vbi import (
    Config,
    TurboPosterior,
    evidence,
    extrinsic,
    passed,
    precision,
    regression,
    runs,
)


def chain_probability(support, config):
    chance = config.share if support[0] else 1 - config.share
    for before, after in itertools.pairwise(support):
        go = config.start if before == 0 else 1 - config.stop
        chance *= go if after else 1 - go
    return chance


def test_messages_are_sums_over_all_supports_without_the_places_own_evidence(generator):
    config = Config(start=0.1, stop=0.3)
    odds = 2 * torch.randn(2, 5, generator=generator, dtype=torch.float64)
    found = torch.sigmoid(extrinsic(odds, config))
    for row in range(2):
        for place in range(5):
            total = [0.0, 0.0]
            for support in itertools.product((0, 1), repeat=5):
                said = sum(float(odds[row, i]) for i in range(5) if support[i] and i != place)
                total[support[place]] += chain_probability(support, config) * math.exp(said)
            assert float(found[row, place]) == pytest.approx(total[1] / sum(total), rel=1e-9)


def test_without_the_chain_every_place_has_the_share(generator):
    config = Config(start=0.1, stop=0.3, chain=False)
    found = torch.sigmoid(extrinsic(torch.randn(3, 4, generator=generator), config))
    torch.testing.assert_close(found, torch.full((3, 4), 0.25))
    independent = Config(start=0.25, stop=0.75)  # a chain that forgets
    odds = torch.randn(3, 4, generator=generator)
    torch.testing.assert_close(torch.sigmoid(extrinsic(odds, independent)), torch.full((3, 4), 0.25))


def test_evidence_and_precision_are_those_of_the_gamma_mixtures():
    config = Config(shape=1.5, rate=0.8, idle_shape=2.0, idle_rate=0.01)
    square = 0.3
    found, means = [], []
    grid = torch.linspace(0, 400, 2_000_001, dtype=torch.float64).numpy()
    for a, b in ((1.5, 0.8), (2.0, 0.01)):
        density = stats.gamma(a, scale=1 / b).pdf(grid) * np.sqrt(grid) * np.exp(-grid * square / 2)
        whole = np.trapezoid(density, grid)
        found.append(math.log(whole))
        means.append(np.trapezoid(grid * density, grid) / whole)
    at = torch.tensor([square], dtype=torch.float64)
    assert float(evidence(at, config)) == pytest.approx(found[0] - found[1], rel=1e-5)
    expected = 0.3 * means[0] + 0.7 * means[1]
    assert float(precision(at, torch.tensor([0.3], dtype=torch.float64), config)) == pytest.approx(expected, rel=1e-5)


def test_a_round_of_both_modules():
    config = Config(start=0.1, stop=0.3, idle_rate=1e-4)
    square = torch.tensor([1.2, 1e-5, 0.9], dtype=torch.float64)
    level, support = passed(square, config)
    odds = evidence(square, config)
    torch.testing.assert_close(support, torch.sigmoid(extrinsic(odds, config) + odds))
    torch.testing.assert_close(level, precision(square, support, config))
    assert support[0] > 0.9 and support[1] < 0.2 and level[1] > 1000 * level[0]


def problem(generator, scattered=False):
    w = torch.zeros(80, dtype=torch.float64)
    places = torch.randperm(80, generator=generator)[:12] if scattered else torch.tensor(
        [*range(10, 16), *range(50, 56)])
    w[places] = torch.randn(12, generator=generator, dtype=torch.float64).sign()
    X = torch.randn(40, 80, generator=generator, dtype=torch.float64)
    noise = 0.6 * torch.randn(40, generator=generator, dtype=torch.float64)
    return X, X @ w + noise, w


def test_regression_finds_runs_that_an_independent_prior_misses():
    """The paper's promise: a support in runs is found better with the chain than without."""
    errors = {True: 0.0, False: 0.0}
    for seed in (0, 2):
        X, y, w = problem(torch.Generator().manual_seed(seed))
        for chain in errors:
            fit = regression(X, y, Config(start=0.03, stop=0.17, chain=chain, rounds=30, warm=100))
            errors[chain] += float((fit.mean - w).square().sum())
    assert errors[True] < 0.6 * errors[False]


def test_regression_with_many_rows_is_least_squares_and_says_what_is_active(generator):
    X = torch.randn(400, 6, generator=generator)
    w = torch.tensor([1.0, 1.2, 0.0, 0.0, -0.8, -1.0])
    y = X @ w + 0.01 * torch.randn(400, generator=generator)
    fit = regression(X, y, Config())
    torch.testing.assert_close(fit.mean.float(), w, atol=5e-3, rtol=0)
    assert (fit.support > 0.5).tolist() == [True, True, False, False, True, True]
    assert fit.variance.dtype == torch.float64 and bool((fit.variance > 0).all())
    with pytest.raises(ValueError, match=r"X is \[400, 6\] and y \[400, 1\]; expected \[N, I\] and \[N\]"):
        regression(X, y[:, None], Config())


def test_the_penalty_is_torchs_divergence(generator):
    config = Config(kl=0.3, start_std=0.2, shape=2.0, rate=0.5)
    matrix = TurboPosterior(4, 6, config, generator, 0.5).double()
    prior = Normal(torch.zeros(4, 6, dtype=torch.float64), 0.5 * matrix.precision**-0.5)
    expected = kl_divergence(Normal(matrix.weight, matrix.variance().sqrt()), prior).sum()
    assert float(matrix.variance().detach().sqrt().mean()) == pytest.approx(0.1, rel=1e-5)
    torch.testing.assert_close(matrix.penalty(), 0.3 * expected, rtol=1e-5, atol=1e-6)
    assert TurboPosterior(4, 6, Config(kl=0), generator).penalty() is None


def test_steps_leave_out_weights_that_hardly_are_there(generator):
    matrix = TurboPosterior(2, 8, Config(every=2, warmup=3, start_std=1e-3), generator, 0.5)
    with torch.no_grad():
        matrix.weight.copy_(torch.tensor([[1.0] * 4 + [1e-4] * 4, [1e-4] * 8]))
    for step in range(1, 5):
        matrix.after_step()
        assert matrix.flops_per_token() == (32 if step < 4 else 8)
    assert torch.equal(matrix.dense() != 0, torch.tensor([[True] * 4 + [False] * 4, [False] * 8]))
    x = torch.randn(3, 8, generator=generator)
    assert torch.equal(matrix.eval()(x, Context()), x @ matrix.dense().T)
    drawn = matrix.train()(x, Context(generator=generator))
    torch.testing.assert_close(drawn, x @ matrix.weight.T, atol=0.02, rtol=0)


def test_runs_are_counted():
    active = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1], [1, 0, 1, 0, 1]]).bool()
    assert runs(active) == 2 + 1 + 3


def test_refuses(generator):
    with pytest.raises(MixwellError, match="TurboPosterior draws in training"):
        TurboPosterior(4, 6, Config(), generator).train()(torch.ones(1, 6), Context())
    with pytest.raises(ValueError, match=r"stop is 1\.0; expected a number below 1"):
        Config(stop=1.0)
    with pytest.raises(ValueError, match="idle_rate is 0; expected a number above 0"):
        Config(idle_rate=0, idle_shape=2)
