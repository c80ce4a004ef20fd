"""Bootstrap of a mixture: errors against theory, names kept, intervals, the test of a component more, refusals."""

import numpy as np
import pytest
import torch

from mixwell.density import GaussianMixture, MixtureBootstrap, PoissonMixture
from mixwell.density.selection.bootstrap import parameters


def groups(rows=200, gap=6.0):
    rng = np.random.default_rng(0)
    return rng.normal(np.repeat([[0.0], [gap]], rows // 2, 0))


@pytest.mark.parametrize("kind", ["rows", "parametric"])
def test_errors_of_groups_apart_are_those_of_their_means(kind):
    x = groups()
    found = MixtureBootstrap(GaussianMixture(2, random_state=0), 200, kind=kind, random_state=0).fit(x)
    model = found.estimator_
    theory = np.sqrt(model.covariances_[:, 0, 0] / (model.weights_ * len(x)))
    np.testing.assert_allclose(found.standard_errors_["means_"][:, 0], theory, rtol=0.2)
    share = np.sqrt(model.weights_[0] * model.weights_[1] / len(x))
    np.testing.assert_allclose(found.standard_errors_["weights_"], share, rtol=0.2)
    low, high = found.intervals_["means_"]
    np.testing.assert_allclose((high - low)[:, 0], 2 * 1.96 * theory, rtol=0.25)
    np.testing.assert_allclose(np.quantile(found.resampled_["means_"], 0.025, 0), low)


def test_components_keep_their_names():
    """Every resample's means lie near those of the fit, whichever way a fit has numbered them."""
    found = MixtureBootstrap(GaussianMixture(2, random_state=0), 30, random_state=0).fit(groups())
    means = found.estimator_.means_[:, 0]
    assert np.abs(found.resampled_["means_"][:, :, 0] - means).max() < 1
    moved = parameters(found.estimator_, np.array([1, 0]))
    np.testing.assert_array_equal(moved["means_"][:, 0], means[::-1])
    tied = GaussianMixture(2, covariance_type="tied", random_state=0).fit(np.hstack([groups(), groups()[::-1]]))
    np.testing.assert_array_equal(parameters(tied, np.array([1, 0]))["covariances_"], tied.covariances_)


def test_a_component_more_is_tested():
    x = groups(80)
    one = MixtureBootstrap(GaussianMixture(1, random_state=0), 19, test=True, random_state=0).fit(x)
    two = MixtureBootstrap(GaussianMixture(2, random_state=0), 19, test=True, random_state=0).fit(x)
    assert one.p_value_ == 1 / 20 and two.p_value_ > 1 / 20
    gain = 2 * len(x) * (GaussianMixture(2, random_state=0).fit(x).score(x) - GaussianMixture(1).fit(x).score(x))
    assert one.statistic_ == pytest.approx(gain)


def test_other_families_and_scores():
    x = np.random.default_rng(0).poisson([[2, 9]] * 60 + [[9, 3]] * 60).astype(float)
    base = PoissonMixture(2, random_state=0)
    found = MixtureBootstrap(estimator=base, n_resamples=60, level=0.8, random_state=0).fit(x)
    model = found.estimator_
    theory = np.sqrt(model.rates_ / (model.weights_[:, None] * len(x)))
    np.testing.assert_allclose(found.standard_errors_["rates_"], theory, rtol=0.45)
    np.testing.assert_array_equal(found.predict(x), model.predict(x))
    assert found.score(x) == model.score(x)


@pytest.mark.parametrize("kind", ["rows", "parametric"])
def test_tensors_are_told_as_arrays_are(kind):
    of_arrays, of_tensors = (MixtureBootstrap(GaussianMixture(2, random_state=0), 5, kind=kind, random_state=0).fit(x)
                             for x in (groups(), torch.tensor(groups())))
    assert set(of_tensors.standard_errors_) == {"weights_", "means_", "covariances_"}
    for name, errors in of_arrays.standard_errors_.items():
        np.testing.assert_allclose(of_tensors.standard_errors_[name], errors, rtol=1e-6)


@pytest.mark.parametrize("options, message", [
    ({"n_resamples": 1}, "n_resamples=1, level=0.95; expected 2 or more"),
    ({"level": 1.0}, "level=1.0; expected 2 or more, and a level between 0 and 1"),
    ({"kind": "jackknife"}, "kind='jackknife'; expected 'rows' or 'parametric'"),
])
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        MixtureBootstrap(**options).fit(groups())
