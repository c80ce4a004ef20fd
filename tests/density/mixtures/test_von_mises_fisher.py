"""Von Mises-Fisher mixture: Bessel functions, normaliser and concentration, an EM step in loops, limits, refusals."""

import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st
import torch

from mixwell.density import VonMisesFisherMixture
from mixwell.density.mixtures.bessel import bessel_ratio, log_bessel_i
from mixwell.density.mixtures.von_mises_fisher import concentration, draw_directions, log_area, log_normaliser
from tests.density.mixtures._tools import continued, softmax

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def directions():
    rng = np.random.default_rng(0)
    return np.concatenate([draw_directions(rng, np.eye(3)[0], 8.0, 60), draw_directions(rng, np.eye(3)[1], 20.0, 60)])


@pytest.mark.parametrize("order", [0.0, 0.5, 3.2, 20.0, 79.0, 150.0])
def test_log_bessel_agrees_with_scipy_where_it_is_finite(order):
    x = np.logspace(-2, 4, 40)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.log(sp.ive(order, x)) + x
        ratio = sp.ive(order + 1, x) / sp.ive(order, x)
    finite = np.isfinite(expected) & np.isfinite(ratio) & (ratio > 0)
    assert finite.sum() > 20
    x = torch.from_numpy(x)
    np.testing.assert_allclose(log_bessel_i(order, x)[finite], expected[finite], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(bessel_ratio(order, x)[finite], ratio[finite], rtol=1e-12)


def test_log_bessel_keeps_the_recurrence_at_huge_orders():
    x = torch.logspace(0, 6, 30, dtype=torch.float64)
    below, here, above = (log_bessel_i(v, x) for v in (16383.0, 16384.0, 16385.0))
    assert bool(torch.isfinite(here).all())
    left = 1 - torch.exp(above - below)
    np.testing.assert_allclose(left, 2 * 16384 / x * torch.exp(here - below), rtol=1e-7, atol=1e-9)
    assert float(log_bessel_i(0.0, torch.zeros(1))) == 0 and float(log_bessel_i(2.0, torch.zeros(1))) == -np.inf


def test_normaliser_and_concentration_agree_with_scipy_and_each_other():
    kappa = torch.tensor([0.5, 10.0, 300.0], dtype=torch.float64)
    for k, c in zip(kappa.tolist(), log_normaliser(4, kappa).tolist()):
        mu = np.array([0.0, 0.6, 0.8, 0.0])
        assert c + k == pytest.approx(st.vonmises_fisher(mu, k).logpdf(mu), rel=1e-9)
    assert float(log_normaliser(3, torch.zeros(1, dtype=torch.float64))) == pytest.approx(-np.log(4 * np.pi))
    for d in (2, 3, 50, 2048):
        kappa = torch.tensor([0.1, 5.0, 2000.0, 1e6], dtype=torch.float64)
        np.testing.assert_allclose(concentration(d, bessel_ratio(d / 2 - 1, kappa), 1e9), kappa, rtol=1e-6)


def test_a_step_agrees_with_loops():
    x = directions()
    model = VonMisesFisherMixture(2, random_state=0, max_iter=1, tol=0).fit(x * 7.0)
    joint = np.stack([np.log(model.weights_[k]) + st.vonmises_fisher(model.mean_directions_[k] / np.linalg.norm(
        model.mean_directions_[k]), model.concentrations_[k]).logpdf(x) for k in range(2)], 1)
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(joint, 1), rtol=1e-8)
    total = softmax(joint).T @ x
    continued(model, x)
    np.testing.assert_allclose(model.mean_directions_, total / np.linalg.norm(total, axis=1, keepdims=True), atol=1e-9)
    for k in range(2):
        length = np.linalg.norm(total[k]) / softmax(joint)[:, k].sum()
        kappa = model.concentrations_[k]
        assert 1 / np.tanh(kappa) - 1 / kappa == pytest.approx(length, abs=1e-8)


def test_concentrations_in_two_thousand_dimensions():
    rng = np.random.default_rng(0)
    kappas, d = (3000.0, 8000.0), 2048
    x = np.concatenate([draw_directions(rng, np.eye(d)[i], k, 60) for i, k in enumerate(kappas)])
    model = VonMisesFisherMixture(2, random_state=0).fit(x)
    assert np.isfinite(model.lower_bound_) and len(np.unique(model.predict(x))) == 2
    # with 60 rows the length of the mean is biased upwards by the noise in d dimensions
    expected = [float(concentration(d, torch.tensor(np.sqrt(a**2 + (1 - a**2) / 60)), 1e9)) for a in
                (float(bessel_ratio(d / 2 - 1, torch.tensor(k))) for k in kappas)]
    np.testing.assert_allclose(np.sort(model.concentrations_), expected, rtol=0.03)


def test_no_concentration_is_the_uniform_density():
    assert float(log_normaliser(3, torch.zeros(1, dtype=torch.float64))) == pytest.approx(-np.log(4 * np.pi))
    assert log_area(2) == pytest.approx(np.log(2 * np.pi))
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    model = VonMisesFisherMixture(1).fit(x)
    assert model.concentrations_[0] < 1e-8
    np.testing.assert_allclose(model.score_samples(x), -np.log(2 * np.pi), rtol=1e-9)
    drawn = draw_directions(np.random.default_rng(0), np.eye(2)[0], 0.0, 2000)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1)
    assert np.linalg.norm(drawn.mean(0)) < 0.06


def test_length_of_rows_does_not_count():
    x = directions()
    plain = VonMisesFisherMixture(2, random_state=0).fit(x)
    scaled = VonMisesFisherMixture(2, random_state=0).fit(x * np.logspace(-3, 3, len(x))[:, None])
    np.testing.assert_allclose(scaled.mean_directions_, plain.mean_directions_, rtol=1e-9)
    np.testing.assert_allclose(scaled.score_samples(5 * x), plain.score_samples(x), rtol=1e-9)


@pytest.mark.parametrize(("kind", "scale"), [("float32", 1e-25), ("float32", 1e20), ("float64", 1e200)])
def test_starts_take_rows_of_any_length(kind, scale):
    x = directions().astype(kind)
    plain, scaled = (VonMisesFisherMixture(2, random_state=0).fit(y) for y in (x, (x * scale).astype(kind)))
    np.testing.assert_allclose(scaled.mean_directions_, plain.mean_directions_, atol=1e-5)
    np.testing.assert_allclose(scaled.concentrations_, plain.concentrations_, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:row 0 is all zeros")
def test_a_row_of_zeros_in_single_precision():
    x = np.r_[np.zeros((1, 3)), directions()]
    single, double = (VonMisesFisherMixture(2, random_state=0).fit(x.astype(kind)) for kind in ("float32", "float64"))
    np.testing.assert_allclose(single.mean_directions_, double.mean_directions_, atol=1e-4)


def test_held_parameters_stay_and_the_rest_is_the_best():
    x = directions()
    model = VonMisesFisherMixture(2, random_state=0, max_iter=1).fit(x)
    kappas = model.concentrations_.copy()
    continued(model, x, fixed="concentrations")
    np.testing.assert_array_equal(model.concentrations_, kappas)
    assert model._n_parameters() == 5
    wrong = VonMisesFisherMixture(1).fit(x[:60])
    mu = wrong.mean_directions_[0].copy()
    continued(wrong, x[60:], fixed="directions")
    np.testing.assert_array_equal(wrong.mean_directions_[0], mu)
    kappa = np.linspace(0.01, 30, 3000)  # the best concentration about another group's direction
    likelihood = np.log(kappa / (4 * np.pi * np.sinh(kappa))) + kappa * (x[60:] @ mu).mean()
    assert wrong.concentrations_[0] == pytest.approx(kappa[likelihood.argmax()], abs=0.02)


def test_largest_concentration_and_refusals():
    x = np.repeat(np.array([[1.0, 0.0], [0.0, 1.0]]), 10, axis=0)
    assert VonMisesFisherMixture(2, random_state=0, max_concentration=50.0).fit(x).concentrations_.max() == 50
    with pytest.raises(ValueError, match="1 feature"):
        VonMisesFisherMixture().fit(x[:, :1])
    with pytest.raises(ValueError, match="The 'max_concentration' parameter"):
        VonMisesFisherMixture(max_concentration=0).fit(x)
    with pytest.warns(UserWarning, match="row 3 is all zeros"):
        model = VonMisesFisherMixture(1).fit(np.r_[x[:3], np.zeros((1, 2)), x[3:]])
    np.testing.assert_allclose(model.concentrations_, VonMisesFisherMixture(1).fit(x).concentrations_, rtol=1e-9)
