"""Parameters held for some components and in blocks: they stay, the rest is what the constraint allows, errors."""

import numpy as np
import pytest

from mixwell.density import (
    CategoricalMixture,
    ExponentialMixture,
    GammaMixture,
    GaussianMixture,
    InverseGaussianMixture,
    NegativeBinomialMixture,
    PoissonMixture,
    ProductMixture,
    StudentTMixture,
)
from mixwell.density.mixtures.product import Block

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def rows(seed=0):
    return np.random.default_rng(seed).normal([[0, 0]] * 50 + [[3, 1]] * 50 + [[1, 4]] * 50)


def counts():
    return np.random.default_rng(0).poisson([[3, 9]] * 50 + [[9, 2]] * 50).astype(float)


def test_a_mean_held_for_one_component_leaves_the_others_free():
    x = rows()
    start = {"means_init": [[0.3, 0.3], [3, 1], [1, 4]], "random_state": 0, "tol": 1e-9, "max_iter": 300}
    some = GaussianMixture(3, fixed={"means": [0]}, **start).fit(x)
    every, free = (GaussianMixture(3, fixed=names, **start).fit(x) for names in ("means", None))
    np.testing.assert_allclose(some.means_[0], [0.3, 0.3], rtol=1e-14)
    assert np.abs(some.means_[1:] - [[3, 1], [1, 4]]).min() > 1e-3
    assert every.score(x) < some.score(x) < free.score(x) and np.diff(some.lower_bounds_).min() > -1e-12
    assert (free._n_parameters(), some._n_parameters(), every._n_parameters()) == (17, 15, 11)
    r = some.predict_proba(x)[:, 0]
    gap = x - [0.3, 0.3]  # the covariance is about the held mean
    np.testing.assert_allclose(some.covariances_[0], (r[:, None] * gap).T @ gap / r.sum(), rtol=1e-3, atol=1e-3)


def test_weights_and_covariances_held_for_some_components():
    x = rows()
    start = {"weights_init": [0.5, 0.25, 0.25], "means_init": [[0, 0], [3, 1], [1, 4]],
             "precisions_init": [np.eye(2) * p for p in (0.5, 1, 1)], "max_iter": 200, "tol": 1e-10}
    model = GaussianMixture(3, fixed={"weights": [0], "covariances": [0, 2]}, **start).fit(x)
    assert model.weights_[0] == 0.5 and model.weights_.sum() == pytest.approx(1)
    np.testing.assert_allclose(model.covariances_[[0, 2]], [2 * np.eye(2), np.eye(2)], atol=1e-5)
    assert np.abs(model.covariances_[1] - np.eye(2)).max() > 0.01
    r = model.predict_proba(x).mean(0)
    assert model.weights_[1] / model.weights_[2] == pytest.approx(r[1] / r[2], rel=1e-3)
    assert model._n_parameters() == 2 - 1 + 6 + 3 and np.diff(model.lower_bounds_).min() > -1e-12


@pytest.mark.parametrize("kind, name", [(PoissonMixture, "rates"), (NegativeBinomialMixture, "means"),
                                        (NegativeBinomialMixture, "sizes"), (ExponentialMixture, "scales"),
                                        (InverseGaussianMixture, "means"), (InverseGaussianMixture, "shapes"),
                                        (CategoricalMixture, "probabilities"), (StudentTMixture, "dofs")])
def test_every_family_holds_what_it_says(kind, name):
    x = counts() + 1.0
    x = rows().round().clip(0, 2) if kind is CategoricalMixture else x
    model = kind(2, random_state=0, max_iter=2).fit(x)
    before, free = read(model, name), model._n_parameters()
    model.set_params(warm_start=True, max_iter=6, tol=0, fixed={name: [1]}).fit(x)
    after = read(model, name)
    np.testing.assert_allclose(after[1], before[1], rtol=1e-12)
    assert np.abs(after[0] / before[0] - 1).max() > 1e-9 and model._n_parameters() < free
    assert np.diff(model.lower_bounds_).min() > -1e-9
    model.set_params(fixed={name: True}).fit(x)
    np.testing.assert_allclose(read(model, name), after, rtol=1e-12)


def read(model, name):
    value = getattr(model, f"{name}_")
    return np.hstack(value) if isinstance(value, list) else np.array(value)


def test_a_block_holds_its_own_starting_values():
    x = np.column_stack([rows(), counts().repeat(2, 0)[:150]])
    numbers = GaussianMixture(means_init=[[0.0, 0.5], [3.0, 2.0]], fixed={"means": [0]})
    model = ProductMixture(2, blocks=[Block("numeric", numbers, (0, 1)), Block("count", PoissonMixture(), (2, 3))],
                           random_state=0).fit(x)
    means = model.blocks_[0].estimator.means_
    assert min(np.abs(means - [0.0, 0.5]).sum(1)) == 0 and min(np.abs(means - [3.0, 2.0]).sum(1)) > 1e-3
    short = Block("numeric", GaussianMixture(means_init=[[0.0, 0.5]]), (0, 1))
    with pytest.raises(ValueError, match="The parameter 'means' should have the shape of"):
        ProductMixture(2, blocks=[short, Block("count", PoissonMixture(), (2, 3))]).fit(x)


@pytest.mark.parametrize("kind, options, fixed, message", [
    (GaussianMixture, {}, {"mean": [0]}, "fixed names 'mean'; expected some of weights, means, covariances"),
    (GaussianMixture, {}, {"means": [2]}, r"fixed\['means'\] is \[2\]; expected True, or a list of components from 0"),
    (GaussianMixture, {}, {"means": 0}, r"fixed\['means'\] is 0; expected True, or a list"),
    (GaussianMixture, {}, {"means": [[True, False]]}, r"fixed\['means'\] is \[\[True, False\]\]; expected True"),
    (GaussianMixture, {"covariance_type": "tied"}, {"covariances": [0]}, "covariances of this GaussianMixture can"),
    (GammaMixture, {}, {"shapes": [0]}, "shapes of this GammaMixture can only stay for all of them"),
])
def test_what_cannot_be_held_is_said(kind, options, fixed, message):
    with pytest.raises(ValueError, match=message):
        kind(2, fixed=fixed, **options).fit(counts() + 1)
