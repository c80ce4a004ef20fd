import itertools

import numpy as np
import pytest
import torch
from scipy.special import digamma
from scipy.stats import beta, dirichlet
from sklearn.metrics import adjusted_rand_score

from mixwell.density.clustering.topics import ClusterTopics, Config, Posterior, beta_kl, dirichlet_kl, example, sweep

RNG = np.random.default_rng(0)


def corpus(count=60, length=60, seed=0):
    """Three clusters with five words each and five words that all use half of the time."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    shares = np.full((3, 20), 0.002)
    for j in range(3):
        shares[j, 5 * j : 5 * j + 5] = 0.1
    shares[:, 15:] = 0.1
    return np.stack([rng.multinomial(length, shares[j] / shares[j].sum()) for j in labels]), labels


X, LABELS = corpus()
SMALL = RNG.integers(0, 3, (2, 4)).astype(float)


def tables(J=2, L=2, G=1, V=4):
    local, common = RNG.dirichlet(np.ones(V), (J, L)), RNG.dirichlet(np.ones(V), G)
    old = Posterior(RNG.dirichlet(np.ones(J), 2), RNG.uniform(0.5, 2, (2, J, L)), RNG.uniform(0.5, 2, (2, G)),
                    RNG.uniform(0.5, 2, (2, 2)))
    return old, np.array([0.3, 0.7]), local, common


def expected(parameters):
    return digamma(parameters) - digamma(parameters.sum())


@pytest.mark.parametrize("hold", [False, True])
def test_a_sweep_agrees_with_a_loop_over_words(hold):
    old, weights, local, common = tables()
    config = Config(n_clusters=2, n_local=2, n_global=1)
    new, bound, local_counts, global_counts = sweep(SMALL, old, weights, local, common, config, hold)
    slow_local, slow_global, total = np.zeros_like(local), np.zeros_like(common), 0.0
    for n in range(2):
        share = expected(old.share_N2[n])
        log_joint, picked = np.log(weights), []
        for j in range(2):
            rows = []
            for v in range(4):
                p = [np.exp(share[0] + expected(old.local_NJL[n, j])[k]) * local[j, k, v] for k in range(2)]
                p += [np.exp(share[1] + expected(old.global_NG[n])[0]) * common[0, v]]
                log_joint[j] += SMALL[n, v] * np.log(sum(p))
                rows.append(np.array(p) / sum(p))
            picked.append(rows)
        resp = old.resp_NJ[n] if hold else np.exp(log_joint) / np.exp(log_joint).sum()
        np.testing.assert_allclose(new.resp_NJ[n], resp)
        total += (resp * (log_joint - np.log(resp))).sum()
        mine, common_mass = np.zeros((2, 2)), 0.0
        for j, v in itertools.product(range(2), range(4)):
            c = resp[j] * SMALL[n, v] * picked[j][v]
            mine[j] += c[:2]
            common_mass += c[2]
            slow_local[j, :, v] += c[:2]
            slow_global[0, v] += c[2]
        np.testing.assert_allclose(new.local_NJL[n], mine + 0.5)
        np.testing.assert_allclose(new.global_NG[n], common_mass + 0.5)
        np.testing.assert_allclose(new.share_N2[n], [mine.sum() + 1, common_mass + 1])
    np.testing.assert_allclose(local_counts, slow_local)
    np.testing.assert_allclose(global_counts, slow_global)
    kl = dirichlet_kl(old.local_NJL, 0.5) + dirichlet_kl(old.global_NG, 0.5) + beta_kl(old.share_N2, (1.0, 1.0))
    assert bound == pytest.approx(total - kl)


def test_divergences_agree_with_sampling():
    a, b = np.array([2.0, 3.0, 0.7]), np.full(3, 0.5)
    x = RNG.dirichlet(a, 4000)
    ratio = [dirichlet(a).logpdf(v) - dirichlet(b).logpdf(v) for v in x / x.sum(1, keepdims=True)]
    assert dirichlet_kl(a[None], 0.5) == pytest.approx(np.mean(ratio), abs=4 * np.std(ratio) / 60)
    x = RNG.beta(2, 3, 20000)
    ratio = beta(2, 3).logpdf(x) - beta(1, 2).logpdf(x)
    assert beta_kl(np.array([[2.0, 3.0]]), (1.0, 2.0)) == pytest.approx(ratio.mean(), abs=0.03)


@pytest.fixture(scope="module")
def model():
    return ClusterTopics(n_clusters=3, n_local=1, n_global=1, random_state=0, tol=1e-6, share_prior=(5.0, 5.0)).fit(X)


def test_clusters_are_found_and_the_bound_never_falls(model):
    assert adjusted_rand_score(LABELS, model.labels_) == 1
    assert np.diff(model.lower_bounds_).min() > -1e-6
    np.testing.assert_allclose(model.resp_.sum(1), 1)
    fresh, labels = corpus(30, seed=9)
    assert adjusted_rand_score(labels, model.predict(fresh)) == 1


def test_common_words_go_to_the_global_topics_and_own_words_to_the_local_ones(model):
    assert model.global_topics_[0, 15:].sum() > 0.8
    for j in range(3):
        mine = LABELS[model.labels_ == j][0]
        assert model.local_topics_[j, 0, 5 * mine : 5 * mine + 5].sum() > 0.8
    assert abs(model.local_shares_.mean() - 0.5) < 0.1


def test_one_cluster_without_local_words_is_a_topic_model_of_shares():
    """One cluster, one local and one global topic with equal words: every word's share is the corpus'."""
    found = ClusterTopics(n_clusters=1, n_local=1, n_global=1, random_state=0, max_iter=30).fit(X)
    own = found.local_shares_[:, None]
    share = own * found.local_topics_[0] + (1 - own) * found.global_topics_
    np.testing.assert_allclose(share.mean(0), X.sum(0) / X.sum(), atol=0.01)
    np.testing.assert_allclose(found.resp_, 1)


@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_starts(init):
    found = ClusterTopics(n_clusters=3, n_local=2, n_global=2, init=init, n_init=2, max_iter=6, inner_iter=2,
                          random_state=1).fit(X)
    assert found.local_topics_.shape == (3, 2, 20) and found.n_iter_ == len(found.lower_bounds_)
    np.testing.assert_allclose(found.local_topics_.sum(-1), 1)
    if init == "kmeans":
        assert adjusted_rand_score(LABELS, found.labels_) == 1


def test_refuses():
    with pytest.raises(ValueError, match=r"row 1, column 0 is -1\.0"):
        ClusterTopics(n_clusters=1).fit(np.array([[1.0, 0.0], [-1.0, 2.0]]))
    with pytest.raises(ValueError, match="2 documents for 4 clusters"):
        ClusterTopics().fit(X[:2])
    for wrong in ({"n_local": 0}, {"topic_prior": 0.0}, {"init": "lda"}):
        with pytest.raises(ValueError, match="expected"):
            ClusterTopics(**wrong).fit(X)


def test_example_runs():
    given = example(torch.Generator().manual_seed(0))
    assert adjusted_rand_score(np.arange(20) % 2, given["estimator"].fit(given["X"]).labels_) == 1


def test_topics_priors_are_what_a_document_without_words_keeps():
    config = Config(n_clusters=2, n_local=2, n_global=2, local_prior=0.3, global_prior=0.7)
    old = Posterior(np.full((1, 2), 0.5), np.ones((1, 2, 2)), np.ones((1, 2)), np.ones((1, 2)))
    words = np.full((2, 2, 3), 1 / 3)
    new, *_ = sweep(np.zeros((1, 3)), old, np.full(2, 0.5), words, words[0], config)
    np.testing.assert_allclose(new.local_NJL, 0.3)
    np.testing.assert_allclose(new.global_NG, 0.7)
