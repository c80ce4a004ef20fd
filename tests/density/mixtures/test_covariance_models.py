"""Covariance models: what each shares, that no nearby model of its kind is likelier, and mclust's criteria."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from sklearn.datasets import load_iris

from mixwell.density import GaussianMixture, GaussianMixtureDensity, StudentTMixture
from mixwell.density._covariances import LAYOUTS, LETTERS
from mixwell.density.mixtures.em.models import MODELS, Own, free_numbers
from tests.density.mixtures._data import acidity, faithful

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
NAMES = [name for name in LAYOUTS if name not in LETTERS]
# mclust 6, `mclustBIC(iris[, -5])`, two components: twice the log-likelihood less the penalty. It stops VVE early.
IRIS = {"EII": -1123.4117, "VII": -1012.2352, "EEI": -1042.9679, "VEI": -956.2823, "EVI": -1007.3082,
        "VVI": -857.5515, "EEE": -688.0972, "VEE": -656.3270, "EVE": -657.2263, "VVE": -605.1841, "EEV": -644.5997,
        "VEV": -561.7285, "EVV": -658.3306, "VVV": -574.0178}


def moments(K=3, D=3, seed=0):
    """Second moments of components, and how many rows they have."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(K, D, 2 * D)) * np.geomspace(0.5, 2, K)[:, None, None]
    return rng.integers(20, 60, K).astype(float), roots @ roots.transpose(0, 2, 1) / D


def maximised(name, count_K, second_KDD, steps=60):
    """The model's covariances (K, D, D), climbed until they stay."""
    second = torch.tensor(second_KDD)[None]
    if LAYOUTS[name] == "diag":
        second = second.diagonal(dim1=-2, dim2=-1)
    elif LAYOUTS[name] == "spherical":
        second = second.diagonal(dim1=-2, dim2=-1).mean(-1)
    elif LAYOUTS[name] == "tied":
        second = (second * torch.tensor(count_K / count_K.sum())[None, :, None, None]).sum(1, keepdim=True)
    weight_SK, old, axes, values = torch.tensor(count_K)[None], None, None, []
    for _ in range(steps if name in MODELS else 0):
        found = MODELS[name](Own(second, weight_SK, old, axes))
        old, axes = found
        values.append(objective(count_K, second_KDD, whole(name, old, second_KDD.shape)))
    assert np.diff(values).min(initial=0) > -1e-9
    return whole(name, second if old is None else old, second_KDD.shape)


def whole(name, covariances, shape):
    value = covariances[0].numpy()
    if LAYOUTS[name] == "spherical":
        value = value[:, None, None] * np.eye(shape[1])
    elif LAYOUTS[name] == "diag":
        value = value[:, :, None] * np.eye(shape[1])
    return np.broadcast_to(value, shape)


def objective(count_K, second_KDD, covariances_KDD):
    total = 0.0
    for n, second, covariance in zip(count_K, second_KDD, covariances_KDD):
        total -= n * (np.log(np.linalg.det(covariance)) + np.trace(np.linalg.solve(covariance, second)))
    return total


def parts(covariances_KDD):
    """Volumes (K,), shapes (K, D) in rising order and orientations (K, D, D)."""
    spreads, axes = np.linalg.eigh(covariances_KDD)
    volume = np.exp(np.log(spreads).mean(1))
    return volume, spreads / volume[:, None], axes


def moved(name, covariances_KDD, rng):
    """A model of the same kind nearby: noise of one draw for what components share, of own draws for the rest."""
    K, D, _ = covariances_KDD.shape
    volume, shape, orientation = (
        (rng.normal(size=(1, *form)) * np.ones((K, *[1] * len(form))) if letter == "E" else rng.normal(size=(K, *form)))
        * (letter != "I") for letter, form in zip(name, ((), (D,), (D, D))))
    turns = [expm(1e-3 * (a - a.T)) for a in orientation]
    axes = common(name, covariances_KDD)
    found = []
    for k in range(K):
        spread = np.diag(axes[k].T @ covariances_KDD[k] @ axes[k])
        lean = shape[k] - shape[k].mean()
        spread = spread * np.exp(1e-3 * volume[k] + 1e-3 * lean)
        basis = turns[k] @ axes[k]
        found.append(basis * spread @ basis.T)
    return np.array(found)


def common(name, covariances_KDD):
    """Axes (K, D, D) in which shared parts stand in the same places."""
    if name[2] == "I":
        return np.array([np.eye(covariances_KDD.shape[1])] * len(covariances_KDD))
    if name[2] == "E":
        _, axes = np.linalg.eigh((covariances_KDD * np.array([1.0, 1.7, 2.9])[:, None, None]).sum(0))
        return np.array([axes] * len(covariances_KDD))
    return np.linalg.eigh(covariances_KDD)[1]


@pytest.mark.parametrize("name", NAMES)
def test_no_model_of_its_kind_nearby_is_likelier(name):
    count_K, second_KDD = moments()
    best = maximised(name, count_K, second_KDD)
    value, rng = objective(count_K, second_KDD, best), np.random.default_rng(0)
    others = [moved(name, best, rng) for _ in range(60)]
    assert max(objective(count_K, second_KDD, other) for other in others) < value
    check_shared(name, best)
    for other in others[:3]:
        check_shared(name, other)  # so that the neighbours are of the kind


def check_shared(name, covariances_KDD):
    volume, shape, _ = parts(covariances_KDD)
    if name[0] == "E":
        np.testing.assert_allclose(volume, volume[0])
    if name[1] == "I":
        np.testing.assert_allclose(shape, 1)
    if name[1] == "E":
        np.testing.assert_allclose(shape, shape[[0] * len(shape)])
    if name[2] == "E":  # the same axes: the matrices commute
        a, b, c = covariances_KDD
        np.testing.assert_allclose(a @ b, b @ a, atol=1e-8)
        np.testing.assert_allclose(b @ c, c @ b, atol=1e-8)
    if name[2] == "I":
        np.testing.assert_allclose(covariances_KDD * (1 - np.eye(3)), 0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_criteria_are_mclusts_on_iris(name):
    x = load_iris().data
    model = GaussianMixture(2, covariance_type=name, tol=1e-9, max_iter=500, reg_covar=0, random_state=0).fit(x)
    assert np.diff(model.lower_bounds_).min() > -1e-10
    if name == "VVE":
        assert IRIS[name] < -model.bic(x) < IRIS[name] + 1
    else:
        assert -model.bic(x) == pytest.approx(IRIS[name], abs=2e-3)


def test_criteria_are_mclusts_on_faithful_and_acidity():
    start = {"means_init": [[2.0, 54], [3.8, 77], [4.4, 81]], "tol": 1e-9, "max_iter": 500, "reg_covar": 0}
    tied = GaussianMixture(3, covariance_type="EEE", random_state=0, **start).fit(faithful())
    assert -tied.bic(faithful()) == pytest.approx(-2314.2956, abs=2e-3)
    one = GaussianMixture(2, covariance_type="EEE", tol=1e-10, max_iter=500, reg_covar=0, random_state=0).fit(acidity())
    assert -one.bic(acidity()) == pytest.approx(-392.0723, abs=2e-3)


@pytest.mark.parametrize("ours, theirs", LETTERS.items())
def test_two_names_of_a_model_give_one_fit(ours, theirs):
    x = load_iris().data
    one, other = (GaussianMixture(3, covariance_type=name, random_state=0).fit(x) for name in (ours, theirs))
    np.testing.assert_array_equal(one.covariances_, other.covariances_)
    assert one._n_parameters() == other._n_parameters()


def test_free_numbers_are_mclusts():
    """`nMclustParams` less means and weights, for four columns and three components."""
    expected = {"EII": 1, "VII": 3, "EEI": 4, "VEI": 6, "EVI": 10, "VVI": 12, "EEE": 10, "VEE": 12, "EVE": 16,
                "VVE": 18, "EEV": 22, "VEV": 24, "EVV": 28, "VVV": 30}
    assert {name: free_numbers(name, 3, 4) for name in NAMES} == expected


@pytest.mark.parametrize("name", ["VEI", "EEV", "VVE"])
def test_models_go_with_missing_values_starts_densities_and_tails(name):
    x = load_iris().data.copy()
    x[np.random.default_rng(0).random(x.shape) < 0.1] = np.nan
    options = {"covariance_type": name, "random_state": 0, "max_iter": 15, "tol": 0}
    model = GaussianMixture(3, **options).fit(x)
    assert np.diff(model.lower_bounds_).min() > -1e-7
    again = GaussianMixture(3, weights_init=model.weights_, means_init=model.means_,
                            precisions_init=model.precisions_, **options).fit(x)
    assert again.lower_bounds_[0] == pytest.approx(model.score(x), abs=1e-6)
    whole_rows = load_iris().data
    density = GaussianMixtureDensity.from_estimator(model)
    np.testing.assert_allclose(density.log_prob(torch.tensor(whole_rows)), model.score_samples(whole_rows), rtol=1e-6)
    heavy = StudentTMixture(3, **options).fit(x)
    assert np.diff(heavy.lower_bounds_).min() > -1e-7
    K, D = 3, 4
    assert heavy._n_parameters() == K - 1 + K * D + free_numbers(name, K, D) + K


@pytest.mark.parametrize("name", ["EVE", "VVE"])
def test_a_warm_start_keeps_the_orientation(name):
    """Of groups that share none, so that the pooled moments have other axes than the fit."""
    rng = np.random.default_rng(0)
    roots, centres = rng.normal(size=(4, 7, 7)), 2 * rng.normal(size=(4, 7))
    x = np.concatenate([rng.normal(size=(60, 7)) @ root + centre for root, centre in zip(roots, centres)])
    model = GaussianMixture(4, covariance_type=name, max_iter=4, tol=0, random_state=0, reg_covar=0).fit(x)
    before = model.lower_bounds_
    model.set_params(warm_start=True).fit(x)
    assert np.diff([*before, *model.lower_bounds_]).min() > -1e-10


def test_a_model_bound_to_units_scales_with_all_columns_alike():
    """Multiplying all columns by one number multiplies covariances; the frame must not bend a shared orientation."""
    x = load_iris().data
    for name in ("EVE", "VEV", "EII"):
        options = {"covariance_type": name, "random_state": 0, "reg_covar": 0, "tol": 1e-10, "max_iter": 400}
        one = GaussianMixture(2, **options).fit(x)
        other = GaussianMixture(2, **options).fit(x * 64)
        np.testing.assert_allclose(other.covariances_, one.covariances_ * 64**2, rtol=1e-6)


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="'covariance_type' parameter of GaussianMixture must be a str among"):
        GaussianMixture(2, covariance_type="VIV").fit(load_iris().data)
