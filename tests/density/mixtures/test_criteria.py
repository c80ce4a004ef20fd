"""Criteria by hand, weights as repetitions, and entropies."""

import numpy as np
import pytest

from mixwell.density import CategoricalMixture, GammaMixture, GaussianMixture, LognormalMixture, Mixture


def rows():
    return np.random.default_rng(0).normal([[0.0]] * 40 + [[3.0]] * 40)


def test_criteria_by_hand():
    x = rows()
    model = GaussianMixture(2, random_state=0).fit(x)
    base = -2 * model.score_samples(x).sum()
    assert model.bic(x) == pytest.approx(base + 5 * np.log(80))
    assert model.aic(x) == pytest.approx(base + 10)
    assert model.sabic(x) == pytest.approx(base + 5 * np.log(82 / 24))
    assert model.caic(x) == pytest.approx(base + 5 * (np.log(80) + 1))
    r = model.predict_proba(x)
    entropy = -(r * np.log(r)).sum()
    assert model.icl(x) == pytest.approx(model.bic(x) + 2 * entropy)
    assert model.entropy_r2(x) == pytest.approx(1 - entropy / (80 * np.log(2)))
    assert GaussianMixture(1).fit(x).entropy_r2(x) == 1


def test_weights_count_as_repetitions():
    x = np.random.default_rng(0).integers(0, 2, (16, 4)).astype(float)
    times = np.random.default_rng(1).integers(1, 90, 16)
    model = CategoricalMixture(2, alpha=5.0, random_state=0).fit(x, sample_weight=times)
    for name in ("bic", "aic", "sabic", "caic", "icl", "entropy_r2"):
        criterion = getattr(model, name)
        assert criterion(x, sample_weight=times) == pytest.approx(criterion(x.repeat(times, 0))), name
        assert abs(criterion(x, sample_weight=times) - criterion(x)) > 1e-3, name


def test_a_mixture_of_two_families_has_criteria():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.gamma(2.0, 1.0, 150), np.exp(rng.normal(3, 0.3, 150))])[:, None]
    both = Mixture([GammaMixture(1), LognormalMixture(1)], random_state=0, tol=1e-6).fit(x)
    total = both.score_samples(x).sum()
    assert both.bic(x) == pytest.approx(5 * np.log(300) - 2 * total)
    assert both.aic(x) == pytest.approx(10 - 2 * total)
    assert both.bic(x) < GaussianMixture(2, random_state=0).fit(x).bic(x)
    assert {np.argmax(both.predict_proba([[1.0]])), np.argmax(both.predict_proba([[20.0]]))} == {0, 1}


class Uncounted:
    """A component that does not say how many parameters it has."""

    def fit(self, X, sample_weight=None):
        return self

    def log_prob(self, X):
        return -np.abs(np.asarray(X)[:, 0])


def test_a_component_must_say_its_parameters():
    model = Mixture([Uncounted(), Uncounted()], init="given").fit(rows())
    with pytest.raises(ValueError, match="does not say how many parameters it has; give it an attribute n_parameters"):
        model.bic(rows())
    for part in model.components_:
        part.n_parameters = 3
    assert model.aic(rows()) == pytest.approx(2 * 7 - 2 * model.score_samples(rows()).sum())
