"""Moments and EM under censoring against integrals and loops, and the ordinary mixture as their limit."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from mixwell.density.robust.censored import (
    CensoredGaussianMixture,
    em_step,
    example,
    moment_functions,
    outside,
    quadrature,
)

INF = math.inf
HALF = ((0.0, INF),)
TWO = ((-2.0, -0.5), (0.3, 4.0))


def sample(n, seed, intervals):
    """Observed values of 0.4 N(-1, 1) + 0.6 N(1.5, 1), and the number that was censored."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n) + np.where(rng.random(n) < 0.4, -1.0, 1.5)
    seen = x[np.any([(x > a) & (x < b) for a, b in intervals], axis=0)]
    return seen, n - len(seen)


@pytest.mark.parametrize("intervals", [HALF, TWO, ((-INF, INF),)], ids=["half", "two", "all"])
def test_moment_functions_have_powers_for_means(intervals):
    beta = moment_functions(intervals, 9)
    for mu in (-0.4, 0.0, 0.3):
        for power in range(4):
            def integrand(x, power=power, mu=mu):
                return np.polynomial.hermite_e.hermeval(x, beta[power]) * norm.pdf(x, mu)

            found = sum(quad(integrand, max(a, -11), min(b, 11), limit=200)[0] for a, b in intervals)
            assert abs(found - mu**power) < 2e-2 * 0.4 ** (power / 2)  # what is left is of order mu^9 / 9!


@pytest.mark.parametrize("intervals", [HALF, TWO], ids=["half", "two"])
def test_outside_agrees_with_integrals(intervals):
    mass, first = outside(np.array([-1.0, 0.7]), 1.3, intervals)
    for k, mu in enumerate((-1.0, 0.7)):
        inside = [quad(lambda x, p=p, m=mu: x**p * norm.pdf(x, m, 1.3), a, min(b, 20))[0]
                  for p in (0, 1) for a, b in intervals]
        n = len(intervals)
        np.testing.assert_allclose(mass[k], 1 - sum(inside[:n]), atol=1e-7)
        np.testing.assert_allclose(first[k], mu - sum(inside[n:]), atol=1e-7)


@pytest.mark.parametrize("unseen", [25, None])
def test_an_em_step_agrees_with_a_loop(unseen):
    x, _ = sample(60, 0, HALF)
    w, mu = [0.3, 0.7], [-0.5, 1.0]
    config = CensoredGaussianMixture(sigma=1.2, intervals=HALF)._config()
    weights, means, value = em_step(x, unseen, np.array(w), np.array(mu), config)
    gone = [norm.cdf(0, m, 1.2) for m in mu]
    beyond = [quad(lambda t, m=m: t * norm.pdf(t, m, 1.2), -20, 0)[0] for m in mu]
    total_gone = sum(a * b for a, b in zip(w, gone))
    lost = len(x) * total_gone / (1 - total_gone) if unseen is None else unseen
    count, total, expected = [0.0, 0.0], [0.0, 0.0], 0.0
    for v in x:
        joint = [a * norm.pdf(v, m, 1.2) for a, m in zip(w, mu)]
        expected += math.log(sum(joint)) - (math.log(1 - total_gone) if unseen is None else 0.0)
        for k in range(2):
            count[k] += joint[k] / sum(joint)
            total[k] += v * joint[k] / sum(joint)
    for k in range(2):
        count[k] += lost * w[k] * gone[k] / total_gone
        total[k] += lost * w[k] * beyond[k] / total_gone
    expected += 0.0 if unseen is None else unseen * math.log(total_gone)
    np.testing.assert_allclose(weights, [c / sum(count) for c in count], rtol=1e-8)
    np.testing.assert_allclose(means, [t / c for t, c in zip(total, count)], rtol=1e-7)
    np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_quadrature_gives_planted_atoms_back():
    weights, means = np.array([0.2, 0.5, 0.3]), np.array([-2.0, 0.5, 1.5])
    moments = np.array([weights @ means**p for p in range(1, 6)])
    found_weights, found_means = quadrature(moments, 3, 4.0)
    np.testing.assert_allclose(found_means, means, atol=0.02)
    np.testing.assert_allclose(found_weights, weights, atol=0.02)
    impossible = quadrature(np.array([1.0, 0.5, 1.0]), 2, 4.0)  # m_2 < m_1^2: nearest is one atom
    np.testing.assert_allclose(impossible[0].sum(), 1)
    assert np.isfinite(impossible[1]).all()


@pytest.mark.parametrize("intervals", [HALF, TWO], ids=["half", "two"])
def test_em_never_descends_and_undoes_the_bias_of_censoring(intervals):
    x, lost = sample(4000, 1, intervals)
    model = CensoredGaussianMixture(intervals=intervals, max_iter=500).fit(x, lost)
    naive = CensoredGaussianMixture(max_iter=500).fit(x)
    assert np.diff(model.log_likelihoods_).min() >= -1e-8

    def wrong(one):
        return np.abs([*(one.means_ - [-1, 1.5]), *(one.weights_ - [0.4, 0.6])]).max()

    assert wrong(model) < 0.25 and wrong(model) < wrong(naive)
    assert abs(model.observed_share() - len(x) / 4000) < 0.01


def test_moments_come_nearer_with_rows_and_terms():
    few, many = (sample(n, 2, HALF) for n in (500, 100_000))
    close = CensoredGaussianMixture(intervals=HALF, estimator="moments", n_terms=8).fit(*many)
    rough = CensoredGaussianMixture(intervals=HALF, estimator="moments", n_terms=4).fit(*many)
    noisy = CensoredGaussianMixture(intervals=HALF, estimator="moments", n_terms=8).fit(*few)
    truth = np.array([-1, 1.5])
    assert np.abs(close.means_ - truth).max() < min(np.abs(rough.means_ - truth).max(),
                                                    np.abs(noisy.means_ - truth).max())


def test_where_all_is_seen_both_are_the_ordinary_estimators():
    x, _ = sample(3000, 3, ((-INF, INF),))
    moments = CensoredGaussianMixture(estimator="moments", n_terms=6).fit(x, 0)
    z = x - x.mean()
    np.testing.assert_allclose(moments.moments_[2], np.mean(z**2) - 1, atol=1e-6)
    np.testing.assert_allclose(moments.weights_ @ moments.means_, x.mean(), atol=1e-3)
    for one in (moments, CensoredGaussianMixture(max_iter=300).fit(x, 0)):
        np.testing.assert_allclose(one.means_, [-1, 1.5], atol=0.3)
    single = CensoredGaussianMixture(n_components=1).fit(x, 0)
    np.testing.assert_allclose(single.means_, x.mean(), atol=1e-8)


def test_without_the_number_of_censored_rows():
    x, _ = sample(30_000, 4, TWO)
    model = CensoredGaussianMixture(intervals=TWO, estimator="moments", n_terms=6, reach=3.0).fit(x)
    assert model.moments_[0] == 1 and np.abs(model.means_ - [-1, 1.5]).max() < 0.5


def test_density_integrates_to_one():
    model = CensoredGaussianMixture(sigma=0.7, intervals=HALF, max_iter=20).fit(*sample(200, 5, HALF))
    total = quad(lambda v: math.exp(model.score_samples([v])[0]), -15, 15)[0]
    assert abs(total - 1) < 1e-8


def test_refuses():
    with pytest.raises(ValueError, match=r"x holds -1, outside the intervals"):
        CensoredGaussianMixture(intervals=HALF).fit([1.0, -1.0])
    with pytest.raises(ValueError, match="n_terms is 3; expected at least 4"):
        CensoredGaussianMixture(estimator="moments", n_terms=3).fit([1.0, 2.0])
    with pytest.raises(ValueError, match="expected disjoint"):
        CensoredGaussianMixture(intervals=((1.0, 0.0),)).fit([1.0, 2.0])
    with pytest.raises(ValueError, match="n_censored is -3"):
        CensoredGaussianMixture().fit([1.0, 2.0], -3)


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    fitted = made["estimator"].fit(made["x"], made["n_censored"])
    np.testing.assert_allclose(fitted.means_, [0, 3], atol=0.5)


def test_a_coarse_tolerance_ends_the_ascent_early():
    inputs = example(torch.Generator().manual_seed(0))
    model = inputs.pop("estimator")
    steps = [len(model.set_params(tol=tol).fit(**inputs).log_likelihoods_) for tol in (1e-9, 1.0)]
    assert steps[1] < steps[0]
