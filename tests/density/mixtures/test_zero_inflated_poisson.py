"""Zero-inflated Poisson mixture: densities and a step in loops, the best by a general optimiser, its limits."""

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.optimize import minimize

from mixwell.density import PoissonMixture, ZeroInflatedPoissonMixture
from mixwell.density.mixtures.zero_inflated_poisson import rate_above_zero
from tests.density.mixtures._tools import continued, softmax

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def log(x, rate, inflation):
    return np.log((1 - inflation) * st.poisson.pmf(x, rate) + inflation * (x == 0))


def two_groups():
    rng = np.random.default_rng(0)
    counts = rng.poisson([[3, 9]] * 60 + [[9, 2]] * 60)
    return counts * (rng.random((120, 2)) > 0.25).astype(float)


def test_a_step_agrees_with_loops_and_a_general_optimiser():
    x = two_groups()
    x[3, 1] = np.nan
    model = ZeroInflatedPoissonMixture(2, random_state=0, max_iter=1, tol=0).fit(x)
    joint = np.array([[np.log(model.weights_[k]) + sum(
        log(v, model.rates_[k, d], model.zero_shares_[k, d]) for d, v in enumerate(row) if not np.isnan(v))
        for k in range(2)] for row in x])
    np.testing.assert_allclose(model.score_samples(x), np.logaddexp.reduce(joint, 1), rtol=1e-9)
    r, seen = softmax(joint), ~np.isnan(x)
    continued(model, x)
    np.testing.assert_allclose(model.weights_, r.mean(0), rtol=1e-9)
    for k in range(2):
        for d in range(2):
            w, v = r[seen[:, d], k], x[seen[:, d], d]
            assert [model.rates_[k, d], model.zero_shares_[k, d]] == pytest.approx(best(w, v), abs=1e-5)


def best(w, x):
    """Rate and share of zeros of the highest weighted likelihood."""
    return minimize(lambda p: -w @ log(x, p[0], p[1]), [4.0, 0.2], method="Nelder-Mead", bounds=[(0, 50), (0, 1)],
                    options={"xatol": 1e-7, "fatol": 1e-10}).x


def test_rates_above_zero_have_the_mean_of_truncated_counts():
    rate = torch.tensor([1e-6, 0.01, 1.0, 8.0, 300.0], dtype=torch.float64)
    np.testing.assert_allclose(rate_above_zero(rate / -torch.expm1(-rate)), rate, rtol=1e-6, atol=1e-9)


def test_fewer_zeros_than_poisson_counts_have_leave_no_inflation():
    x = np.random.default_rng(0).poisson(1.0, (400, 1)) + 0.0
    x[x == 0] = np.where(np.arange((x == 0).sum()) % 2, 0, 1)
    ours, poisson = ZeroInflatedPoissonMixture(1, tol=1e-9).fit(x), PoissonMixture(1).fit(x)
    assert ours.zero_shares_[0, 0] == 0 and ours.rates_ == pytest.approx(poisson.rates_)
    assert ours.score(x) == pytest.approx(poisson.score(x), abs=1e-12)
    nothing = ZeroInflatedPoissonMixture(1).fit(np.zeros((5, 1)))
    assert nothing.score(np.zeros((5, 1))) == pytest.approx(0, abs=1e-6)


def test_one_population_with_zeros_of_two_origins_is_one_component():
    rng = np.random.default_rng(0)
    x = rng.poisson((4, 7), (400, 2)) * (rng.random((400, 2)) > 0.3).astype(float)
    options = {"random_state": 0, "tol": 1e-5, "max_iter": 300}
    ours = [ZeroInflatedPoissonMixture(k, **options).fit(x).bic(x) for k in (1, 2, 3)]
    poisson = [PoissonMixture(k, **options).fit(x).bic(x) for k in (1, 2, 3, 4)]
    assert np.argmin(ours) == 0 and np.argmin(poisson) > 1


@pytest.mark.parametrize("name, free", [("weights", 8), ("rates", 5), ("zero_shares", 5)])
def test_held_parameters_stay_and_are_not_counted(name, free):
    x = two_groups()
    model = ZeroInflatedPoissonMixture(2, random_state=0, max_iter=2).fit(x)
    before = {part: getattr(model, f"{part}_").copy() for part in ("weights", "rates", "zero_shares")}
    model.set_params(warm_start=True, max_iter=4, tol=0, fixed=name).fit(x)
    assert model._n_parameters() == free and np.diff(model.lower_bounds_).min() > -1e-12
    for part, value in before.items():
        assert np.array_equal(getattr(model, f"{part}_"), value) == (part == name)


def test_draws_have_the_share_of_zeros():
    x = two_groups()
    model = ZeroInflatedPoissonMixture(1, random_state=0).fit(x)
    drawn, _ = model.sample(20_000)
    np.testing.assert_allclose((drawn == 0).mean(0), (x == 0).mean(0), atol=0.02)
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), rtol=0.03)
