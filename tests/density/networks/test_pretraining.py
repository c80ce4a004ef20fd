"""Pretraining: tables against brute force, both stages apart, what unlabelled rows bring, and manners."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from mixwell.density import GaussianMixture, PretrainedPredictor
from mixwell.density.networks.pretraining import (
    _Table,
    component_means,
    component_votes,
    example,
    posterior,
)

RNG = np.random.default_rng(0)
CENTRES = np.array([[-6.0, 0.0], [0.0, 6.0], [6.0, 0.0], [0.0, -6.0]])


def groups(rows, seed=0):
    """Rows from four groups, and their groups."""
    rng = np.random.default_rng(seed)
    z = np.arange(rows) % 4
    return CENTRES[z] + rng.normal(size=(rows, 2)), z


def mixture(**options):
    return PretrainedPredictor(**{"n_components": 4, "random_state": 0, **options})


def test_votes_have_the_least_expected_error_of_all_tables():
    resp, y = RNG.dirichlet([0.4] * 3, 15), RNG.integers(0, 2, 15)

    def risk(psi):
        return sum(r[k] * (psi[k] != label) for r, label in zip(resp, y) for k in range(3))

    best = min(itertools.product((0, 1), repeat=3), key=risk)
    np.testing.assert_array_equal(component_votes(resp, np.eye(2)[y]).argmax(1), best)


def test_means_have_the_least_expected_square_and_no_gradient():
    resp, y = torch.tensor(RNG.dirichlet([0.4] * 3, 15)), torch.tensor(RNG.normal(size=(15, 1)))
    psi = torch.tensor(component_means(resp.numpy(), y.numpy()), requires_grad=True)
    risk = sum(resp[n, k] * (psi[k, 0] - y[n, 0]) ** 2 for n in range(15) for k in range(3))
    risk.backward()
    assert float(psi.grad.abs().max()) < 1e-12
    spare = component_means(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[2.0], [5.0]]))
    np.testing.assert_allclose(spare, [[3.5], [3.5]])


@pytest.mark.parametrize("predictor", ["linear", "table"])
def test_the_stages_are_those_of_their_parts(predictor):
    x, z = groups(80)
    y = np.where(np.arange(80) < 24, z % 2, -1)
    model = mixture(predictor=predictor).fit(x, y)
    assert (model.n_labelled_, model.n_pretraining_) == (24, 80)
    alone = GaussianMixture(4, random_state=0).fit(x)
    resp, fresh = alone.predict_proba(x[:24]), alone.predict_proba(CENTRES)
    if predictor == "linear":
        expected = LogisticRegression().fit(resp, z[:24] % 2).predict_proba(fresh)
    else:
        table = np.zeros((4, 2))
        for k in range(4):
            votes = [sum(resp[n, k] for n in range(24) if z[n] % 2 == c) for c in (0, 1)]
            table[k, int(votes[1] > votes[0])] = 1
        expected = fresh @ table
    np.testing.assert_allclose(model.predict_proba(CENTRES), expected)
    np.testing.assert_array_equal(model.predict(CENTRES), expected.argmax(1))
    np.testing.assert_array_equal(model.predict(CENTRES), [0, 1, 0, 1])
    assert model.score(x, z % 2) == (model.predict(x) == z % 2).mean()


@pytest.mark.parametrize("predictor", ["linear", "table"])
def test_regression(predictor):
    x, z = groups(80)
    y = np.where(np.arange(80) < 20, 3.0 * z, np.nan)
    model = mixture(task="regression", predictor=predictor).fit(x, y)
    resp, fresh = (posterior(model.latent_, v) for v in (x, CENTRES))
    if predictor == "linear":
        expected = Ridge().fit(resp[:20], 3.0 * z[:20]).predict(fresh)
    else:
        psi = [sum(resp[n, k] * 3.0 * z[n] for n in range(20)) / sum(resp[n, k] for n in range(20)) for k in range(4)]
        expected = fresh @ psi
    np.testing.assert_allclose(model.predict(CENTRES), expected)
    assert model.score(x, 3.0 * z) == pytest.approx(r2_score(3.0 * z, model.predict(x))) and not hasattr(
        model, "predict_proba")


def test_rows_without_labels_may_come_apart():
    x, z = groups(60)
    together = mixture().fit(x, np.where(np.arange(60) < 12, z, -1))
    apart = mixture().fit(x[:12], z[:12], X_unlabelled=x[12:])
    np.testing.assert_array_equal(apart.predict_proba(x), together.predict_proba(x))
    words = np.array(["a", "b", "c", "d"])[z[:12]]
    assert set(mixture().fit(x[:12], words, X_unlabelled=x[12:]).predict(x)) == {"a", "b", "c", "d"}


def test_one_label_a_group_is_enough_with_unlabelled_rows():
    """What the paper promises: labels pay for the predictor alone, rows without them for the model."""
    x, z = groups(200)
    y = np.where(np.arange(200) < 4, z % 2, -1)
    ours = mixture(predictor="table").fit(x, y)
    assert ours.score(x, z % 2) > 0.98 > 0.8 > LogisticRegression().fit(x[:4], y[:4]).score(x, z % 2)


def test_other_parts_may_be_given():
    x, z = groups(60)
    y = np.where(np.arange(60) < 40, z, -1)
    latent = PCA(1).fit(x)
    model = PretrainedPredictor(latent=PCA(1), predictor=KNeighborsClassifier(1)).fit(x, y)
    expected = KNeighborsClassifier(1).fit(latent.transform(x[:40]), z[:40])
    np.testing.assert_array_equal(model.predict_proba(x), expected.predict_proba(latent.transform(x)))
    machine = PretrainedPredictor(latent=PCA(1), predictor=LinearSVC()).fit(x, y)
    assert not hasattr(machine, "predict_proba") and machine.predict(x).shape == (60,)


def test_one_component_predicts_one_value():
    x, z = groups(40)
    one = mixture(n_components=1, predictor="table", task="regression").fit(x, z.astype(float))
    np.testing.assert_allclose(one.predict(x), 1.5)
    assert set(mixture(n_components=1, predictor="table").fit(x, np.r_[np.ones(30), np.zeros(10)]).predict(x)) == {1}


def test_same_bits_inputs_untouched_and_single_precision():
    x, z = groups(60)
    y = np.where(np.arange(60) < 12, z, -1)
    copies = x.copy(), y.copy()
    first, second, single = (mixture().fit(v, y).predict_proba(v) for v in (x, x, x.astype(np.float32)))
    assert np.array_equal(first, second) and np.array_equal(x, copies[0]) and np.array_equal(y, copies[1])
    np.testing.assert_allclose(single, first, atol=1e-3)


def test_refusals():
    x, z = groups(20)
    for options, words in (({"task": "ranking"}, "task is 'ranking'; expected 'classification' or 'regression'"),
                           ({"n_components": 0}, "n_components is 0; expected 1 or more"),
                           ({"predictor": "deep"}, "predictor is 'deep'; expected 'table', 'linear' or an estimator"),
                           ({"latent": IsolationForest(n_estimators=5)}, "has neither predict_proba nor transform"),
                           ({"latent": PCA(1), "predictor": "table"}, "features are no probabilities")):
        with pytest.raises(ValueError, match=words):
            mixture(**options).fit(x, z)
    with pytest.raises(ValueError, match="features are no probabilities"):  # though every row sums to one
        _Table().fit(np.array([[1.5, -0.5], [0.5, 0.5]]), np.zeros(2))
    with pytest.raises(ValueError, match="rows without labels go to X_unlabelled"):
        mixture().fit(x, None)
    for y, task in ((np.full(20, -1), "classification"), (np.full(20, np.nan), "regression")):
        with pytest.raises(ValueError, match="y holds no label; expected one or more"):
            mixture(task=task).fit(x, y)
    with pytest.raises(ValueError, match="X has 1 features, but PretrainedPredictor is expecting 2"):
        mixture().fit(x, z, X_unlabelled=x[:, :1])


def test_example():
    given = example(torch.Generator().manual_seed(0))
    model = given["estimator"].fit(given["X"], given["y"])
    assert model.score(given["X"], np.arange(100) % 2) == 1 and model.n_labelled_ == 20
