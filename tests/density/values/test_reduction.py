"""Reduction: the cheapest pair by loops, moments kept, divergences by quadrature, weights of zero."""

import itertools

import numpy as np
import pytest
import torch

from mixwell.density import GaussianMixtureDensity, reduce_mixture
from mixwell.density.values.reduction import Config, divergences, example, merging_cost
from tests.density.values._tools import mixture


def merged(w, m, c, i, j):
    """One pair of components in one, written out."""
    total = w[i] + w[j]
    mean = (w[i] * m[i] + w[j] * m[j]) / total
    gap = m[i] - m[j]
    cov = (w[i] * c[i] + w[j] * c[j]) / total + w[i] * w[j] / total**2 * np.outer(gap, gap)
    return total, mean, cov


def loops(p, k):
    """Greedy merging, every pair tried anew at every step."""
    w, m, c = list(p.weights_K.numpy()), list(p.means_KD.numpy()), list(p.covariances_KDD.numpy())
    while len(w) > k:
        def cost(pair):
            i, j = pair
            total, _, cov = merged(w, m, c, i, j)
            logs = [np.linalg.slogdet(s)[1] for s in (cov, c[i], c[j])]
            return 0.5 * (total * logs[0] - w[i] * logs[1] - w[j] * logs[2])

        i, j = min(itertools.combinations(range(len(w)), 2), key=cost)
        new = merged(w, m, c, i, j)
        for part, value in zip((w, m, c), new):
            part[i] = value
            del part[j]
    return np.array(w), np.array(m), np.array(c)


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_greedy_merging_agrees_with_loops(k):
    p = mixture(6, seed=4)
    small = reduce_mixture(p, Config(n_components=k))
    w, m, c = loops(p, k)
    np.testing.assert_allclose(small.weights_K, w)
    np.testing.assert_allclose(small.means_KD, m, atol=1e-12)
    np.testing.assert_allclose(small.covariances_KDD, c, atol=1e-12)


@pytest.mark.parametrize("refine", [0, 3])
def test_mean_and_covariance_are_kept(refine):
    p = mixture(6)
    before = [part.clone() for part in (p.weights_K, p.means_KD, p.covariances_KDD)]
    for k in (1, 3, 6):
        small = reduce_mixture(p, Config(n_components=k, refine=refine))
        assert len(small.weights_K) <= k and (refine > 0 or len(small.weights_K) == k)
        np.testing.assert_allclose(small.mean(), p.mean(), atol=1e-10)
        np.testing.assert_allclose(small.covariance(), p.covariance(), atol=1e-9)
    for part, kept in zip((p.weights_K, p.means_KD, p.covariances_KDD), before):
        assert torch.equal(part, kept)


def test_refinement_lowers_the_divergence_to_the_reduced_mixture():
    """sum_i w_i min_k KL(N_i || M_k), which greedy merging does not look at."""
    def total(p, small):
        kl = divergences(p.means_KD, p.covariances_KDD, small.means_KD, small.covariances_KDD)
        return float(p.weights_K @ kl.min(1).values)

    gains = []
    for seed in (0, 2, 4, 13):
        p = mixture(12, seed=seed, spread=1.0)
        gains.append(total(p, reduce_mixture(p, Config(n_components=3)))
                     - total(p, reduce_mixture(p, Config(n_components=3, refine=5))))
    assert min(gains) > -1e-9 and max(gains) > 1e-3


def test_the_close_pair_is_merged():
    means = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.1, 0.0]])
    three = GaussianMixtureDensity([0.3, 0.4, 0.3], means, torch.eye(2).expand(3, 2, 2))
    two = reduce_mixture(three, Config(n_components=2, refine=2))
    np.testing.assert_allclose(two.means_KD[two.means_KD[:, 0].argsort(), 0], [0.05, 9.0], atol=1e-6)
    same = GaussianMixtureDensity([0.5, 0.5], torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2))
    cost = merging_cost(same.weights_K, same.means_KD, same.covariances_KDD, torch.arange(2))
    np.testing.assert_allclose(cost, [[np.inf, 0], [0, np.inf]])


def test_divergence_agrees_with_quadrature():
    x = torch.linspace(-30, 30, 20001, dtype=torch.float64)[:, None]
    a, b = (GaussianMixtureDensity([1.0], [[m]], [[[s]]]) for m, s in ((0.0, 1.0), (1.0, 4.0)))
    expected = float((a.log_prob(x).exp() * (a.log_prob(x) - b.log_prob(x))).sum() * 0.003)
    found = divergences(a.means_KD, a.covariances_KDD, b.means_KD, b.covariances_KDD)
    assert float(found) == pytest.approx(expected, 1e-6)


def test_components_without_weight_leave_no_trace():
    p = mixture(4)
    zeros = torch.zeros(3, dtype=torch.float64)
    padded = GaussianMixtureDensity(torch.cat([p.weights_K, zeros]), torch.cat([p.means_KD, 9 + torch.rand(3, 2)]),
                                    torch.cat([p.covariances_KDD, torch.eye(2).expand(3, 2, 2)]))
    for config in (Config(n_components=2), Config(n_components=5), Config(n_components=2, refine=2)):
        found, expected = reduce_mixture(padded, config), reduce_mixture(p, config)
        np.testing.assert_allclose(found.means_KD, expected.means_KD)
        np.testing.assert_allclose(found.covariances_KDD, expected.covariances_KDD)


def test_refusals_and_example(generator):
    with pytest.raises(ValueError, match="n_components=0, refine=0; expected at least 1 and 0"):
        Config(n_components=0)
    with pytest.raises(ValueError, match="refine=-1"):
        Config(refine=-1)
    assert len(reduce_mixture(**example(generator)).weights_K) == 2
