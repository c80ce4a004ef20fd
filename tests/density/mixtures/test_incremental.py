"""The stream's updates against weighted covariances, loops and the papers' two steps, and conditioning."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2, multivariate_normal

from mixwell.core.errors import MixwellError
from mixwell.density.mixtures.incremental import (
    IncrementalGaussianMixture,
    example,
    gain,
    update_covariances,
    update_precisions,
)

RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(60, 3)) @ RNG.normal(size=(3, 3)), RNG.normal(size=(60, 3)) + 7])
X = X[RNG.permutation(120)]


@pytest.mark.parametrize("residual", ["old", "new"])
def test_precision_form_equals_covariance_form_update_for_update(residual):
    options = {"delta": 1.0, "beta": 0.1, "residual": residual, "spread": np.ones(3) * 2}
    fast = IncrementalGaussianMixture(**options)
    slow = IncrementalGaussianMixture(**options, form="covariance")
    for x in X:
        fast.partial_fit(x[None])
        slow.partial_fit(x[None])
        np.testing.assert_allclose(fast.means_, slow.means_, atol=1e-8)
        np.testing.assert_allclose(fast.precisions_, slow.precisions_, atol=1e-8)
        np.testing.assert_allclose(fast.log_dets_, slow.log_dets_, atol=1e-8)
    assert len(fast.means_) > 1


def test_one_step_is_the_papers_two():
    root = RNG.normal(size=(2, 4, 4))
    covariance = root @ root.transpose(0, 2, 1) + np.eye(4)
    e, rate = RNG.normal(size=(2, 4)), np.array([0.1, 0.25])
    precision, log_det = update_precisions(np.linalg.inv(covariance), np.linalg.slogdet(covariance)[1], e, rate,
                                           gain(rate, "new"))
    for k in range(2):
        moved, star = rate[k] * e[k], (1 - rate[k]) * e[k]
        expected = (1 - rate[k]) * covariance[k] + rate[k] * np.outer(star, star) - np.outer(moved, moved)
        np.testing.assert_allclose(precision[k], np.linalg.inv(expected), atol=1e-10)
        np.testing.assert_allclose(log_det[k], np.linalg.slogdet(expected)[1], atol=1e-10)


def test_one_component_is_the_weighted_mean_and_covariance_of_all_rows():
    model = IncrementalGaussianMixture(beta=0.0, spread=np.ones(3), delta=1.0).fit(X)
    centred = X - X.mean(0)
    expected = (centred.T @ centred + np.eye(3)) / 120  # the first row brought the unit covariance with it
    np.testing.assert_allclose(model.means_[0], X.mean(0), atol=1e-10)
    np.testing.assert_allclose(np.linalg.inv(model.precisions_[0]), expected, atol=1e-9)
    np.testing.assert_allclose(model.log_dets_[0], np.linalg.slogdet(expected)[1], atol=1e-9)
    assert model.masses_.tolist() == [120] and model.ages_.tolist() == [120]


def test_agrees_with_a_loop():
    model = IncrementalGaussianMixture(delta=0.4, beta=0.01, spread=X.std(0)).fit(X)
    means, covariances, masses = [], [], []
    for x in X:
        parts = [multivariate_normal(m, c) for m, c in zip(means, covariances)]
        near = [(x - m) @ np.linalg.solve(c, x - m) < chi2.ppf(0.99, 3) for m, c in zip(means, covariances)]
        if not any(near):
            means.append(x)
            covariances.append(np.diag((0.4 * X.std(0)) ** 2))
            masses.append(1.0)
            continue
        joint = [s * p.pdf(x) for s, p in zip(masses, parts)]
        for k, value in enumerate(joint):
            masses[k] += value / sum(joint)
            rate = value / sum(joint) / masses[k]
            e = x - means[k]
            covariances[k] = (1 - rate) * covariances[k] + rate * (1 - rate) * np.outer(e, e)
            means[k] = means[k] + rate * e
    np.testing.assert_allclose(model.means_, means, atol=1e-8)
    np.testing.assert_allclose(model.masses_, masses, atol=1e-8)
    weights = np.array(masses) / sum(masses)
    density = sum(w * multivariate_normal(m, c).pdf(X[:5]) for w, m, c in zip(weights, means, covariances))
    np.testing.assert_allclose(model.score_samples(X[:5]), np.log(density), atol=1e-8)
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1)


def test_pieces_of_a_stream_are_the_stream():
    whole = IncrementalGaussianMixture(spread=np.ones(3) * 3).fit(X)
    pieces = IncrementalGaussianMixture(spread=np.ones(3) * 3).partial_fit(X[:50]).partial_fit(X[50:])
    assert np.array_equal(whole.precisions_, pieces.precisions_)


def test_novelty_and_dropping():
    fine, coarse = (len(IncrementalGaussianMixture(delta=d, beta=0.1).fit(X).means_) for d in (0.1, 1.0))
    assert fine > coarse
    keeps = IncrementalGaussianMixture(delta=0.1, beta=0.1, age_min=5, mass_min=0.0).fit(X)
    drops = IncrementalGaussianMixture(delta=0.1, beta=0.1, age_min=5, mass_min=4.0).fit(X)
    assert len(drops.means_) < len(keeps.means_) and (drops.masses_[drops.ages_ > 5] >= 4).all()


def test_conditional_mean_is_regression_for_one_component():
    model = IncrementalGaussianMixture(beta=0.0, spread=np.full(3, 0.01)).fit(X)
    design = np.column_stack([np.ones(120), X[:, [2, 0]]])
    expected = design @ np.linalg.lstsq(design, X[:, 1], rcond=None)[0]
    np.testing.assert_allclose(model.conditional_mean(X[:, [2, 0]], [2, 0])[:, 0], expected, atol=1e-3)


def test_conditional_mean_weighs_components_by_what_is_known():
    model = IncrementalGaussianMixture(delta=0.4, beta=0.01).fit(X)
    found = model.conditional_mean([[7.0]], [0])[0]
    covariances = np.linalg.inv(model.precisions_)
    total, expected = 0.0, np.zeros(2)
    for w, m, c in zip(model.weights_, model.means_, covariances):
        share = w * multivariate_normal(m[0], c[0, 0]).pdf(7.0)
        expected += share * (m[1:] + c[1:, 0] / c[0, 0] * (7.0 - m[0]))
        total += share
    np.testing.assert_allclose(found, expected / total, atol=1e-8)


def test_refuses():
    with pytest.raises(ValueError, match="beta 1"):
        IncrementalGaussianMixture(beta=1.0).fit(X)
    with pytest.raises(MixwellError, match="lose its positive definite covariance"):
        IncrementalGaussianMixture(residual="new", spread=np.ones(3) * 0.1, beta=0.0).fit(X)
    with pytest.raises(ValueError, match=r"spread has shape \(2,\)"):
        IncrementalGaussianMixture(spread=np.ones(2)).fit(X)
    with pytest.raises(ValueError, match="known has 2 columns for 1 named"):
        IncrementalGaussianMixture().fit(X).conditional_mean(X[:, :2], [0])


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    assert 2 <= len(made["estimator"].fit(made["X"]).means_) <= 8


def test_the_singular_step_is_named():
    with pytest.raises(MixwellError, match="component 0"):
        update_covariances(np.eye(2)[None], np.array([[9.0, 0.0]]), np.array([0.5]), np.array([-0.125]))
