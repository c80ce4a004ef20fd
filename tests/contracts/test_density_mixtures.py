"""What mixtures on the EM driver promise beyond other estimators of density; tags in `_density`."""

from copy import deepcopy

import numpy as np
import pytest
from sklearn.base import clone

from tests.contracts._density import cases, fitted, given, refitted
from tests.contracts._tools import fresh

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("entry", cases("estimator", "mixture"))
def test_the_order_of_rows_changes_nothing(entry):
    model, inputs = fitted(entry)
    x = inputs["X"]
    np.testing.assert_allclose(model.score_samples(x[::-1])[::-1], model.score_samples(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("entry", cases("estimator", "mixture"))
def test_weights_are_repetitions(entry):
    model, inputs = fitted(entry)
    x = inputs["X"]
    w = np.random.default_rng(0).integers(1, 4, len(x))
    if hasattr(model, "components_"):
        start = clone(model).set_params(components=model.components_, init="given", max_iter=3)
    else:
        start = deepcopy(model).set_params(warm_start=True, max_iter=3)
    weighted, repeated = deepcopy(start).fit(x, sample_weight=w), deepcopy(start).fit(x.repeat(w, 0))
    np.testing.assert_allclose(weighted.score_samples(x), repeated.score_samples(x), rtol=1e-6, atol=1e-7)
    assert np.abs(weighted.score_samples(x) - model.score_samples(x)).max() > 1e-6


@pytest.mark.parametrize("entry", cases("estimator", "mixture"))
def test_sample_then_fit_recovers_the_density(entry):
    model, _ = fitted(entry)
    again, drawn = refitted(entry)
    # the fit cannot be much better or worse than the truth on what the truth has drawn
    gap = again.score(drawn) - model.score(drawn)
    assert -1e-3 < gap < 0.02
    np.testing.assert_allclose(np.sort(again.weights_), np.sort(model.weights_), atol=0.06)


@pytest.mark.parametrize("entry", cases("estimator", "online"))
def test_partial_fit_improves_on_its_first_batch(entry):
    model = clone(fitted(entry)[0])
    full, drawn = refitted(entry)
    x = np.random.default_rng(0).permutation(drawn)
    first = -np.inf if "categories" in entry.tags else model.partial_fit(x[:30]).score(x)  # may lack a category
    for part in np.array_split(x, 30):
        model.partial_fit(part)
    assert max(first, full.score(x) - 0.05) < model.score(x)
    batches = clone(model).set_params(batch_size=300, max_iter=4).fit(x)
    assert batches.score(x) > full.score(x) - 0.05


@pytest.mark.parametrize("entry", cases("estimator", "missing"))
def test_missing_values_integrate_out(entry):
    """The density of the observed columns is the marginal: a row of nothing has density one."""
    given_ = entry.module().example(fresh(1))
    x = given_["X"].copy()
    x[np.random.default_rng(0).random(x.shape) < 0.2] = np.nan
    model = clone(given_["estimator"]).set_params(tol=0, max_iter=15).fit(x)
    assert np.diff(model.lower_bounds_).min() > -1e-7
    nothing = np.full((2, x.shape[1]), np.nan)
    np.testing.assert_allclose(model.score_samples(nothing), 0, atol=1e-9)
    np.testing.assert_allclose(model.predict_proba(nothing)[0], model.weights_, atol=1e-9)


def test_every_mixture_of_the_family_is_on_the_driver():
    # one pass; expectations of densities; sequences; a mixture with another part; one with a component of its own kind
    apart = {"incremental", "bayesian", "hidden_markov", "latent_classes", "noise", "prior"}
    names = {p.id.rpartition(".")[2] for p in cases("estimator") if p.id.startswith("mixtures.")}
    assert names - {p.id.rpartition(".")[2] for p in cases("estimator", "mixture")} == apart
    assert given(cases("estimator", "mixture")[0].values[0])["estimator"] is not None
