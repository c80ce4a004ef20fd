"""What every mixture of the catalogue promises, asked of each from its own `example`."""

import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from sklearn.base import clone

from mixwell.core.registry import family

ENTRIES = [e for e in family("density.mixtures") if "estimator" in e.tags]


@pytest.fixture(params=ENTRIES, ids=lambda e: e.name.rpartition(".")[2])
def given(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield request.param.module().example(torch.Generator().manual_seed(0))


def test_the_likelihood_never_falls(given):
    model = clone(given["estimator"]).set_params(tol=0, max_iter=30).fit(given["X"])
    assert len(model.lower_bounds_) > 1
    assert np.diff(model.lower_bounds_).min() > -1e-7


def test_responsibilities_sum_to_one_and_labels_follow_them(given):
    model = clone(given["estimator"]).fit(given["X"])
    resp = model.predict_proba(given["X"])
    np.testing.assert_allclose(resp.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(model.predict(given["X"]), resp.argmax(1))
    assert resp.shape == (len(given["X"]), len(model.weights_)) and len(np.unique(resp.argmax(1))) > 1


def test_same_seed_same_bits_and_inputs_untouched(given):
    x = given["X"].copy()
    first, second = (clone(given["estimator"]).fit(x).score_samples(x) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(x, given["X"])


def test_the_order_of_rows_changes_nothing(given):
    x, model = given["X"], clone(given["estimator"]).fit(given["X"])
    np.testing.assert_allclose(model.score_samples(x[::-1])[::-1], model.score_samples(x), rtol=1e-9, atol=1e-9)


def test_float32_agrees_with_float64(given):
    x = given["X"].astype(np.float32)
    single, double = (clone(given["estimator"]).fit(v) for v in (x, x.astype(np.float64)))
    np.testing.assert_allclose(single.score_samples(x), double.score_samples(x.astype(np.float64)), atol=5e-3)


def test_weights_are_repetitions(given):
    x = given["X"]
    w = np.random.default_rng(0).integers(1, 4, len(x))
    start = clone(given["estimator"]).set_params(max_iter=1).fit(x)
    if hasattr(start, "components_"):
        start.set_params(components=start.components_, init="given", max_iter=5)
        weighted, repeated = deepcopy(start).fit(x, sample_weight=w), deepcopy(start).fit(x.repeat(w, 0))
    else:
        start.set_params(warm_start=True, max_iter=5)
        repeated = clone(given["estimator"]).set_params(max_iter=1).fit(x).set_params(warm_start=True, max_iter=5)
        weighted, repeated = start.fit(x, sample_weight=w), repeated.fit(x.repeat(w, 0))
    np.testing.assert_allclose(weighted.score_samples(x), repeated.score_samples(x), rtol=1e-6, atol=1e-7)


def test_sample_then_fit_recovers_the_density(given):
    model = clone(given["estimator"]).fit(given["X"])
    drawn, labels = model.sample(1500)
    assert len(drawn) == len(labels) == 1500
    again = clone(given["estimator"]).set_params(tol=1e-5, max_iter=300).fit(drawn)
    # the fit cannot be much better or worse than the truth on what the truth has drawn
    gap = again.score(drawn) - model.score(drawn)
    assert -1e-3 < gap < 0.02
    np.testing.assert_allclose(np.sort(again.weights_), np.sort(model.weights_), atol=0.06)


def test_round_trip_of_parameters(given):
    model = given["estimator"]
    assert clone(model).get_params().keys() == model.get_params().keys()
    again = type(model)(**model.get_params(deep=False))
    np.testing.assert_array_equal(again.fit(given["X"]).score_samples(given["X"]),
                                  clone(model).fit(given["X"]).score_samples(given["X"]))


@pytest.mark.parametrize("name", [e.name for e in ENTRIES if "online" in e.tags])
@pytest.mark.filterwarnings("ignore")
def test_partial_fit_improves_on_its_first_batch(name):
    entry = next(e for e in ENTRIES if e.name == name)
    given = entry.module().example(torch.Generator().manual_seed(1))
    x, _ = clone(given["estimator"]).fit(given["X"]).sample(3000)
    x = np.random.default_rng(0).permutation(x)
    model = clone(given["estimator"])
    first = model.partial_fit(x[:30]).score(x) if name != "density.mixtures.categorical" else -np.inf
    for part in np.array_split(x, 30):
        model.partial_fit(part)
    full = clone(given["estimator"]).fit(x)
    assert max(first, full.score(x) - 0.05) < model.score(x)
    batches = clone(given["estimator"]).set_params(batch_size=300, max_iter=4).fit(x)
    assert batches.score(x) > full.score(x) - 0.05


@pytest.mark.parametrize("name", [e.name for e in ENTRIES if "missing" in e.tags])
@pytest.mark.filterwarnings("ignore")
def test_missing_values_integrate_out(name):
    """The density of the observed columns is the marginal: a row of nothing has density one."""
    given = next(e for e in ENTRIES if e.name == name).module().example(torch.Generator().manual_seed(1))
    x = given["X"].copy()
    x[np.random.default_rng(0).random(x.shape) < 0.2] = np.nan
    model = clone(given["estimator"]).set_params(tol=0, max_iter=15).fit(x)
    assert np.diff(model.lower_bounds_).min() > -1e-7
    nothing = np.full((2, x.shape[1]), np.nan)
    np.testing.assert_allclose(model.score_samples(nothing), 0, atol=1e-9)
    np.testing.assert_allclose(model.predict_proba(nothing)[0], model.weights_, atol=1e-9)


def integral(model, kind):
    """The density summed over its whole support, two columns or one direction."""
    if kind == "poisson":
        grid = np.stack(np.meshgrid(*[np.arange(60.0)] * 2), -1).reshape(-1, 2)
        return np.exp(model.score_samples(grid)).sum()
    if kind == "categorical":
        grid = np.stack(np.meshgrid(*[[0.0, 1.0]] * 3), -1).reshape(-1, 3)
        return np.exp(model.score_samples(grid)).sum()
    if kind == "product":  # a number, a count and a category
        grid = np.stack(np.meshgrid(np.linspace(-7, 12, 381), np.arange(50.0), [0.0, 1.0]), -1).reshape(-1, 3)
        return np.exp(model.score_samples(grid)).sum() * 19 / 380
    if kind == "von_mises_fisher":
        angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
        height, weight = np.polynomial.legendre.leggauss(100)
        ring = np.sqrt(1 - height**2)
        x = np.stack([ring[:, None] * np.cos(angle), ring[:, None] * np.sin(angle),
                      np.broadcast_to(height[:, None], (100, 400))], -1)
        return (np.exp(model.score_samples(x.reshape(-1, 3))).reshape(100, 400) * weight[:, None]).sum() * np.pi / 200
    t = np.linspace(-1, 1, 601)[1:-1]
    axis, jump = 4 * np.tan(np.pi / 2 * t), 2 * np.pi * (t[1] - t[0]) / np.cos(np.pi / 2 * t) ** 2  # heavy tails
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    return np.exp(model.score_samples(grid)) @ np.outer(jump, jump).ravel()


def test_integrates_to_one(given):
    kind = type(given["estimator"]).__module__.rpartition(".")[2]
    x = given["X"][:, :2] if kind == "factor_analysers" else given["X"]
    assert integral(clone(given["estimator"]).fit(x), kind) == pytest.approx(1, abs=2e-3)
