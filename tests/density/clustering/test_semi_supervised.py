import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, multivariate_t
from sklearn.metrics import adjusted_rand_score

from mixwell.density.clustering.semi_supervised import (
    Prior,
    SemiSupervisedMixture,
    example,
    log_marginal,
    log_split_ratio,
    prototype_loss,
)

RNG = np.random.default_rng(0)
CENTRES = np.array([[-6.0, 0.0], [0.0, 0.0], [6.0, 2.0], [0.0, 7.0]])
LABELS = np.repeat(np.arange(4), 40)
X = CENTRES[LABELS] + RNG.normal(size=(160, 2))
Y = np.where((LABELS < 2) & (np.arange(160) % 4 == 0), LABELS, -1)
PRIOR = Prior(np.array([0.3, -0.2]), 0.5, 5.0, np.array([[2.0, 0.4], [0.4, 1.0]]))


def test_the_marginal_likelihood_is_the_product_of_students_predictives():
    rows, total = RNG.normal(size=(6, 2)), 0.0
    for n in range(6):
        now = PRIOR
        for x in rows[:n]:  # one row at a time
            gap = x - now.mean_D
            now = Prior((now.kappa * now.mean_D + x) / (now.kappa + 1), now.kappa + 1, now.nu + 1,
                        now.psi_DD + now.kappa / (now.kappa + 1) * np.outer(gap, gap))
        dof = now.nu - 1
        scale = now.psi_DD * (now.kappa + 1) / (now.kappa * dof)
        total += multivariate_t(now.mean_D, scale, df=dof).logpdf(rows[n])
        np.testing.assert_allclose(now.psi_DD, PRIOR.updated(rows[:n]).psi_DD if n else PRIOR.psi_DD)
    assert log_marginal(rows, PRIOR) == pytest.approx(total)


def test_ratios_favour_splitting_what_is_apart_and_merging_what_is_not():
    near, far = RNG.normal(size=(2, 20, 2))
    assert log_split_ratio(near, far + 8, PRIOR, 1.0) > 10 and log_split_ratio(near, far, PRIOR, 1.0) < 0
    gain = log_split_ratio(near, far, PRIOR, 3.0) - log_split_ratio(near, far, PRIOR, 1.0)
    assert gain == pytest.approx(math.log(3))
    hand = 2 * math.lgamma(20) - math.lgamma(40) + log_marginal(near, PRIOR) + log_marginal(far, PRIOR) \
        - log_marginal(np.r_[near, far], PRIOR)
    assert log_split_ratio(near, far, PRIOR, 1.0) == pytest.approx(hand)


@pytest.mark.parametrize("start", [1, 2, 9])
def test_the_number_of_classes_is_found_from_below_and_from_above(start):
    found = SemiSupervisedMixture(n_components=start, random_state=0).fit(X, Y)
    assert found.n_components_ == 4 and adjusted_rand_score(LABELS, found.labels_) > 0.97
    assert ("split" if start < 4 else "merge") in found.history_
    known = LABELS < 2
    assert (found.labels_[known] == LABELS[known]).mean() > 0.97  # known classes keep their names
    assert np.isin(found.labels_[~known], [2, 3]).mean() > 0.97 and set(found.component_labels_) == {0, 1, 2, 3}
    np.testing.assert_array_equal(found.predict(X), found.labels_)
    np.testing.assert_allclose(found.predict_proba(X).sum(1), 1)


def test_labelled_rows_are_clamped_and_labelled_classes_never_merge():
    x = np.r_[RNG.normal(size=(30, 2)), RNG.normal(size=(30, 2))]  # one blob, labelled as two classes
    y = np.repeat([3, 8], 30)
    found = SemiSupervisedMixture(n_components=2, rounds=5, concentration=1e-6, random_state=0).fit(x, y)
    np.testing.assert_array_equal(found.labels_, y)
    np.testing.assert_array_equal(found.component_labels_, [3, 8])


def test_all_labels_give_the_classes_own_gaussians():
    found = SemiSupervisedMixture(n_components=4, rounds=0, prior_rows=1e-6, mean_rows=1e-9).fit(X, LABELS)
    for k in range(4):
        mine = X[k == LABELS]
        np.testing.assert_allclose(found.means_[k], mine.mean(0), rtol=1e-6)
        exact = (mine - mine.mean(0)).T @ (mine - mine.mean(0)) / (40 + 2 * 2 + 3)  # mode of the inverse Wishart
        np.testing.assert_allclose(found.covariances_[k], exact, rtol=1e-4, atol=1e-6)
    mixture = sum(w * multivariate_normal(m, c).pdf(X) for w, m, c in
                  zip(found.weights_, found.means_, found.covariances_))
    np.testing.assert_allclose(found.score_samples(X), np.log(mixture))


def test_prototype_loss_agrees_with_a_loop_forward_and_gradient():
    z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    means = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels, slow = torch.tensor([0, 1, 1, 0, 1]), torch.zeros((), dtype=torch.float64)
    for n in range(5):
        scores = torch.stack([z[n] @ m / z[n].norm() / m.norm() / 0.2 for m in means])
        slow = slow - (scores[labels[n]] - scores.exp().sum().log()) / 5
    fast = prototype_loss(z, means, labels, 0.2)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v in (fast, slow)))
    with pytest.raises(ValueError, match="temperature is 0"):
        prototype_loss(z, means, labels, 0)


def test_no_labels_at_all_and_other_priors():
    found = SemiSupervisedMixture(n_components=6, em_steps=2, prior_scale=0.2, random_state=1).fit(X)
    assert adjusted_rand_score(LABELS, found.labels_) > 0.9 and len(found.classes_) == 0


def test_refuses():
    with pytest.raises(ValueError, match="n_components is 200; expected at most 160"):
        SemiSupervisedMixture(n_components=200).fit(X, Y)
    with pytest.raises(ValueError, match=r"y has shape \(3,\)"):
        SemiSupervisedMixture().fit(X, [0, 1, -1])
    with pytest.raises(ValueError, match="whole numbers"):
        SemiSupervisedMixture().fit(X, Y + 0.5)
    with pytest.raises(ValueError, match="y holds values that are not numbers"):
        SemiSupervisedMixture().fit(X, np.repeat(["a", "b"], 80))
    for wrong in ({"n_components": 0}, {"prior_scale": 0.0}, {"concentration": -1.0}):
        with pytest.raises(ValueError, match="expected"):
            SemiSupervisedMixture(**wrong).fit(X)


def test_example_runs():
    given = example(torch.Generator().manual_seed(0))
    labels = given["estimator"].fit(given["X"], given["y"]).labels_
    assert adjusted_rand_score(np.repeat(np.arange(3), 30), labels) > 0.95
