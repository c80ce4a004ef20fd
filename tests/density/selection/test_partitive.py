"""Partitive partitioning: starts and confirmation against a library, valid cuts, the same parts every run."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from mixwell.density import PartitivePartitioning
from mixwell.density.selection.partitive import Config, confirm, cut, example, halved, part_means
from tests.density.selection._tools import three_groups

RNG = np.random.default_rng(0)
BLOB = RNG.normal(size=(120, 2))


def pair(gap, rows=80):
    """Two groups, `gap` apart."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(2 * rows, 2)) + gap * (np.arange(2 * rows) % 2)[:, None] * np.array([1.0, 0.0])


def test_starts_halve_the_widest_part_across_its_longest_axis():
    x = three_groups(10)
    parts = [list(range(30))]
    for count in range(1, 5):
        means = halved(x, count)
        assert sorted(map(tuple, means.round(9))) == sorted(tuple(x[p].mean(0).round(9)) for p in parts)
        widest = max(parts, key=lambda p: sum(((x[n] - x[p].mean(0)) ** 2).sum() for n in p))
        axis = np.linalg.svd(x[widest] - x[widest].mean(0))[2][0]
        side = [float((x[n] - x[widest].mean(0)) @ axis) > 0 for n in widest]
        parts.remove(widest)
        parts += [[n for n, s in zip(widest, side) if s == wanted] for wanted in (False, True)]


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def test_confirmation_agrees_with_a_library(kind):
    x, labels = pair(4.0), np.arange(160) % 2
    resp, bic = confirm(x, labels, 1e-6, Config(covariance_type=kind))
    within = np.concatenate([x[labels == k] - x[labels == k].mean(0) for k in (0, 1)])
    covariance = within.T @ within / 160 + 1e-6 * np.eye(2)
    precision = {"full": np.linalg.inv(covariance), "diag": 1 / np.diag(covariance),
                 "spherical": 2 / np.trace(covariance)}[kind]
    library = GaussianMixture(2, covariance_type=kind, weights_init=[0.5, 0.5], means_init=part_means(x, labels),
                              precisions_init=np.stack([precision] * 2)).fit(x)
    np.testing.assert_allclose(resp, library.predict_proba(x), atol=1e-6)
    assert bic == pytest.approx(library.bic(x), rel=1e-8)


def test_a_cut_is_valid_where_both_agree_and_bic_falls():
    config = Config(max_parts=2, certainty=0.8)
    x = pair(3.5)
    found, agreement = cut(x, 1e-6, config)
    hard = KMeans(2, init=halved(x, 2), n_init=1).fit_predict(x)
    resp, bic = confirm(x, hard, 1e-6, config)
    same = [int(r.argmax()) == k for r, k in zip(resp, hard)]
    assert agreement == sum(same) / 160 and bic < GaussianMixture(1).fit(x).bic(x)
    assert found.tolist() == [k if s and r[k] >= 0.8 else -1 for r, k, s in zip(resp, hard, same)]
    assert 0 < (found == -1).sum() < 30 and agreement < 1
    assert cut(x, 1e-6, Config(max_parts=2, agreement=1.0)) is None
    assert cut(BLOB, 1e-6, config) is None and cut(np.ones((20, 2)), 1e-6, config) is None


def test_rows_change_places_and_nothing_else_changes():
    """The abstract's promise: the same clusters whatever the start; here not even the order of rows matters."""
    x = three_groups(25)
    first = PartitivePartitioning(max_parts=2).fit(x)
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(75)
        again = PartitivePartitioning(max_parts=2).fit(x[order])
        assert adjusted_rand_score(again.labels_, first.labels_[order]) == 1
        np.testing.assert_allclose(sorted(again.cluster_centers_.tolist()), sorted(first.cluster_centers_.tolist()))


def test_groups_are_found_without_their_number():
    x = three_groups(30)
    model = PartitivePartitioning(max_parts=3).fit(x)
    assert model.n_clusters_ == 3 and adjusted_rand_score(np.repeat([0, 1, 2], 30), model.labels_) == 1
    assert len(model.agreements_) >= 1 and min(model.agreements_) >= 0.9
    np.testing.assert_array_equal(model.predict(x), model.labels_)
    np.testing.assert_array_equal(model.labels_, ((x[:, None] - model.cluster_centers_) ** 2).sum(2).argmin(1))
    full = KMeans(3, n_init=5, random_state=0).fit(x)
    assert ((x - model.cluster_centers_[model.labels_]) ** 2).sum() == pytest.approx(full.inertia_, rel=1e-3)


def test_three_in_a_row_need_a_cut_in_three():
    """Two parts cut the middle group in half, on which the mixture does not agree."""
    x = RNG.normal(size=(150, 2)) + 5.0 * (np.arange(150) % 3)[:, None] * np.array([1.0, 0.0])
    assert PartitivePartitioning(max_parts=3).fit(x).n_clusters_ == 3
    assert PartitivePartitioning(max_parts=2).fit(x).n_clusters_ < 3


def test_one_group_is_one_part():
    model = PartitivePartitioning().fit(BLOB)
    assert model.n_clusters_ == 1 and model.separable_.all() and model.agreements_ == []
    np.testing.assert_allclose(model.cluster_centers_, BLOB.mean(0)[None])


def test_options():
    x = pair(4.0)
    strict, lax, large, small = (PartitivePartitioning(max_parts=2, **options).fit(x) for options in (
        {"certainty": 0.99}, {"certainty": 0.0}, {"min_rows": 161}, {"min_rows": 160}))
    assert strict.separable_.sum() < lax.separable_.sum() == 160 and strict.n_clusters_ == lax.n_clusters_ == 2
    assert large.n_clusters_ == 1 < small.n_clusters_
    assert PartitivePartitioning(max_parts=2, agreement=1.0).fit(pair(3.5)).n_clusters_ == 1
    slanted = BLOB @ np.array([[6.0, 6.0], [0.3, -0.3]])
    full, spherical = (PartitivePartitioning(max_parts=2, covariance_type=kind).fit(slanted).n_clusters_
                       for kind in ("full", "spherical"))
    assert full == 1 < spherical


def test_rows_that_repeat_and_more_columns_than_rows():
    assert PartitivePartitioning().fit(np.repeat([[0.0, 0.0], [5.0, 5.0]], 20, axis=0)).n_clusters_ == 2
    assert PartitivePartitioning().fit(RNG.normal(size=(20, 30))).n_clusters_ == 1


def test_same_bits_inputs_untouched_and_single_precision():
    x = three_groups(20)
    copy = x.copy()
    first, second, single = (PartitivePartitioning(max_parts=2).fit(v) for v in (x, x, x.astype(np.float32)))
    assert np.array_equal(first.cluster_centers_, second.cluster_centers_) and np.array_equal(x, copy)
    np.testing.assert_allclose(single.cluster_centers_, first.cluster_centers_, atol=1e-4)


def test_refusals():
    for options, words in (({"agreement": 0}, "agreement is 0"), ({"agreement": 1.1}, "agreement is 1.1"),
                           ({"certainty": -0.1}, "certainty -0.1"), ({"certainty": 1}, "certainty 1; expected"),
                           ({"max_parts": 1}, "max_parts is 1"), ({"min_rows": 1}, "min_rows 1"),
                           ({"covariance_type": "tied"}, "covariance_type is 'tied'; expected 'full', 'diag'")):
        with pytest.raises(ValueError, match=words):
            PartitivePartitioning(**options).fit(BLOB)


def test_example():
    given = example(torch.Generator().manual_seed(0))
    assert given["estimator"].set_params(max_parts=2).fit(given["X"]).n_clusters_ == 3
