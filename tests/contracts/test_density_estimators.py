"""What every estimator of density promises, and those with an EM, a density or responsibilities; tags in `_density`."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone

from tests.contracts._density import cases, converted, fit, fitted, given, relabelled, scored

BOUNDS = ("lower_bounds_", "elbo_", "log_likelihoods_")


def resp(model, inputs):
    """Responsibilities (N, K), where targets are known or not."""
    method = getattr(model, "predict_proba", None) or model.responsibilities
    if "y" in inputs and hasattr(model, "responsibilities"):
        method = model.responsibilities
    return method(**scored(method, inputs))


def log_density(model, inputs):
    """Log densities (N,)."""
    return model.score_samples(**scored(model.score_samples, inputs))


@pytest.mark.parametrize("entry", cases("estimator"))
def test_parameters_survive_a_clone_and_their_own_constructor(entry):
    model = given(entry)["estimator"]
    params = model.get_params(deep=False)
    again = type(model)(**params)
    assert again.get_params(deep=False).keys() == params.keys() == clone(model).get_params(deep=False).keys()
    assert all(value is params[name] for name, value in again.get_params(deep=False).items())
    name = next(name for name, value in params.items() if isinstance(value, (int, float)))
    assert clone(model).set_params(**{name: params[name]}).get_params(deep=False)[name] == params[name]


@pytest.mark.parametrize("entry", cases("estimator", "em"))
def test_the_bound_never_falls(entry):
    model, inputs = fitted(entry)
    model = clone(model)
    further = {"tol": 0.0, "max_iter": 6}
    model.set_params(**{name: value for name, value in further.items() if name in model.get_params(deep=False)})
    model = fit(model, inputs)
    bounds = np.array(next(getattr(model, name) for name in BOUNDS if hasattr(model, name)))
    assert len(bounds) > 1 and np.diff(bounds).min() > -1e-7 * max(1, np.abs(bounds).max())


@pytest.mark.parametrize("entry", cases("estimator", "responsibilities"))
def test_responsibilities_are_probabilities_and_labels_follow_them(entry):
    model, inputs = fitted(entry)
    resp_NK = resp(model, inputs)
    assert (resp_NK >= 0).all() and len(resp_NK) == len(next(iter(inputs.values())))
    np.testing.assert_allclose(resp_NK.sum(1), 1, atol=1e-6)
    assert len(np.unique(resp_NK.argmax(1))) > 1
    if "y" not in inputs and hasattr(model, "predict"):
        np.testing.assert_array_equal(model.predict(**scored(model.predict, inputs)), resp_NK.argmax(1))


@pytest.mark.parametrize("entry", cases("estimator", "relabel"))
def test_names_of_components_do_not_count(entry):
    model, inputs = fitted(entry)
    order = np.roll(np.arange(len(model.weights_)), 1)
    other = relabelled(model, order)
    np.testing.assert_allclose(log_density(other, inputs), log_density(model, inputs), rtol=1e-9, atol=1e-9)
    assert not np.array_equal(other.weights_, model.weights_) or len(set(np.ravel(model.weights_))) == 1
    if hasattr(model, "predict_proba"):
        np.testing.assert_allclose(resp(other, inputs), resp(model, inputs)[:, order], atol=1e-9)


@pytest.mark.parametrize("entry", cases("estimator", "float32"))
def test_float32_agrees_with_float64(entry):
    model, inputs = fitted(entry)
    single = converted(inputs, torch.float32)
    double = converted(single, torch.float64)
    one, two = (fit(clone(model), part) for part in (single, double))
    np.testing.assert_allclose(log_density(one, single), log_density(two, double), atol=5e-3)


@pytest.mark.parametrize("entry", cases("estimator", "density"))
def test_the_density_integrates_to_one(entry):
    model, inputs = fitted(entry)
    x_ND = np.asarray(next(iter(inputs.values())))
    wide = x_ND.ndim > 1 and x_ND.shape[1] > 2  # draws are few in many dimensions
    assert integral(model, x_ND, entry.tags) == pytest.approx(1, abs=2e-2 if wide else 1e-2)


def integral(model, x_ND, tags):
    """The density summed over a grid of its support, or weighed on draws from a wide distribution."""
    if "counts" in tags:
        return np.exp(model.score_samples(grid(np.arange(60.0), np.arange(60.0)))).sum()
    if "categories" in tags:
        return np.exp(model.score_samples(grid(*[[0.0, 1.0]] * 3))).sum()
    if "mixed" in tags:  # a number, a count and a category
        cells = grid(np.linspace(-7, 12, 381), np.arange(50.0), [0.0, 1.0])
        return np.exp(model.score_samples(cells)).sum() * 19 / 380
    if "positive" in tags:
        t_T = np.linspace(-14, 9, 461)
        cells = grid(t_T, t_T)
        return np.exp(model.score_samples(np.exp(cells)) + cells.sum(1)).sum() * (23 / 460) ** 2
    if "shares" in tags:
        t_T = np.linspace(-14, 14, 401)  # of logits
        cells = 1 / (1 + np.exp(-grid(t_T, t_T)))
        return (np.exp(model.score_samples(cells)) * (cells * (1 - cells)).prod(1)).sum() * (28 / 400) ** 2
    if "directions" in tags:
        x_MD = np.random.default_rng(0).normal(size=(40_000, 3))
        return np.exp(model.score_samples(x_MD)).mean() * 4 * np.pi
    return weighed(model, x_ND.reshape(len(x_ND), -1), flat=x_ND.ndim == 1)


def grid(*axes):
    """All combinations of coordinates."""
    return np.stack(np.meshgrid(*axes), -1).reshape(-1, len(axes))


def weighed(model, x_ND, flat, dof=3.0):
    """Importance sampling by quasi-random draws from a t distribution around the data, wider than they are."""
    D = x_ND.shape[1]
    root_DD = 1.3 * np.linalg.cholesky(np.atleast_2d(np.cov(x_ND.T)))
    u_MP = stats.qmc.Sobol(D + 1, seed=0).random_base2(16)
    z_MD = stats.norm.ppf(u_MP[:, :D]) / np.sqrt(stats.chi2.ppf(u_MP[:, D:], dof) / dof)
    x_MD = x_ND.mean(0) + z_MD @ root_DD.T
    log_q_M = stats.multivariate_t(np.zeros(D), np.eye(D), dof).logpdf(z_MD) - np.log(np.diag(root_DD)).sum()
    return np.exp(model.score_samples(x_MD[:, 0] if flat else x_MD) - log_q_M).mean()
