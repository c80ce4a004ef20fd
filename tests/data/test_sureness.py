"""How sure a mixture is: jackknife, coverage, and predictors beside each other."""

import numpy as np
import pytest
from scipy.stats import t

from mixwell.core.errors import MixwellError
from mixwell.data.mixing.exponential_law import Config, ExponentialLaw, example
from mixwell.data.optimum import caps
from mixwell.data.predictor import rank_correlation
from mixwell.data.runs import MixingRuns
from mixwell.data.sureness import (
    coverage,
    cross_validated,
    jackknifed,
    rank_correlations,
    score,
    weight_intervals,
)

QUICK = ExponentialLaw(Config(starts=2))


def fresh(seed=0):
    return np.random.default_rng(seed)


def noisy(noise, count=40, seed=0):
    runs = example(fresh(seed))["runs"].rows(np.arange(count))
    scatter = np.exp(noise * fresh(seed + 1).standard_normal(runs.losses_NM.shape))
    return MixingRuns(runs.domains, runs.targets, runs.weights_ND, runs.losses_NM * scatter)


def test_the_jackknife_of_a_mean_is_its_textbook_interval():
    x_N = fresh().normal(size=12)
    without_N1 = np.array([[np.mean(np.delete(x_N, place))] for place in range(12)])
    low, high = jackknifed(without_N1, np.array([x_N.mean()]), 0.9)
    reach = t.ppf(0.95, 11) * x_N.std(ddof=1) / np.sqrt(12)
    assert low[0] == pytest.approx(x_N.mean() - reach) and high[0] == pytest.approx(x_N.mean() + reach)


def test_weights_are_surer_where_losses_scatter_less():
    widths = []
    for noise in (1e-4, 0.02):
        fitted = QUICK.fit(noisy(noise, seed=2))
        caps_D = caps(fitted)
        low_D, high_D = weight_intervals(fitted, None, caps_D, fresh())
        assert (low_D >= 0).all() and (low_D <= high_D).all() and (high_D <= caps_D).all()
        widths.append((high_D - low_D).mean())
    assert widths[0] < widths[1] / 4
    # every domain helps itself alike: the truth is a quarter each, which the wider intervals hold
    assert (low_D < 0.25).all() and (high_D > 0.25).all()


def test_intervals_cover_about_as_often_as_they_promise():
    fitted = QUICK.fit(noisy(0.02))
    found = coverage(fitted, fresh(), level=0.8)
    assert found.tried == 2 * 10 * 4 and 0.65 < found.share < 0.97
    assert coverage(fitted, fresh(), level=0.3).share < found.share - 0.2


def test_predictors_stand_beside_each_other_on_the_same_folds():
    runs = noisy(0.01, count=24)
    found = cross_validated(runs, ["exponential_law", "bivariate_law"])
    errors_NM = ExponentialLaw().fit(runs, fresh(42)).out_of_fold(fresh(42))
    assert found["exponential_law"] == score(runs, errors_NM)
    square = np.mean([[error**2 for error in row] for row in errors_NM])
    assert found["exponential_law"].error == pytest.approx(square**0.5)
    full = "data.mixing.bivariate_law"
    assert list(cross_validated(runs, ["exponential_law", "bivariate_law"], but=full)) == ["exponential_law"]
    corner = MixingRuns(runs.domains, ("sum",), np.eye(4)[np.arange(24) % 4], runs.losses_NM[:, :1])
    assert "no domain that is trained on" in cross_validated(corner, ["bivariate_law"])["bivariate_law"].refused


def test_ranks_are_those_of_predictions_out_of_fold():
    runs = noisy(0.01)
    errors_NM = 0.1 * fresh(3).standard_normal(runs.losses_NM.shape)
    ranks = rank_correlations(runs, errors_NM)
    told_N = runs.losses_NM[:, 1] / np.exp(errors_NM[:, 1])
    assert ranks["docs"] == pytest.approx(rank_correlation(told_N, runs.losses_NM[:, 1]))


def test_too_few_runs_are_told():
    fitted = ExponentialLaw().fit(noisy(0.01, count=4))
    with pytest.raises(MixwellError, match="expected at least 4"):
        coverage(fitted, fresh())
