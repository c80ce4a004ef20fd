"""What every predictor of mixtures promises (family `data.mixing`)."""

import functools

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.data.optimum import Search, best_weights
from mixwell.data.predictor import rank_correlation
from tests.contracts._tools import cases

PREDICTORS = cases("data.mixing")


def fresh(seed=0):
    return np.random.default_rng(seed)


def runs_of(entry):
    return entry.module().example(fresh())["runs"]


# Trees of larger steps than the paper's, which promise the same in a tenth of the time.
QUICK = {"data.mixing.regression": {"rounds": 100, "learning_rate": 0.1}}


def predictor(entry):
    options = QUICK.get(entry.name)
    return entry.load()(entry.module().Config(**options) if options else None)


@functools.cache
def fitted_to_all(entry):
    """Fitted to the example, once for all tests that only ask it; that a fit repeats is a test of its own."""
    return predictor(entry).fit(runs_of(entry))


@pytest.mark.parametrize("entry", PREDICTORS)
def test_fits_repeat_leave_their_input_and_order_unseen_mixtures(entry):
    runs = runs_of(entry)
    before = runs.weights_ND.copy(), runs.losses_NM.copy()
    seen, held = np.arange(0, len(before[0]), 2), np.arange(1, len(before[0]), 2)
    fitted, again = (predictor(entry).fit(runs.rows(seen)) for _ in range(2))
    part = runs.rows(held)
    predicted_NM = fitted.predict(part.weights_ND, part.steps_N)
    assert np.array_equal(predicted_NM, again.predict(part.weights_ND, part.steps_N))
    assert np.array_equal(runs.weights_ND, before[0]) and np.array_equal(runs.losses_NM, before[1])
    for target in range(len(runs.targets)):
        assert rank_correlation(predicted_NM[:, target], part.losses_NM[:, target]) > 0.9


@pytest.mark.parametrize("entry", PREDICTORS)
def test_names_of_domains_and_order_of_runs_do_not_count(entry):
    runs = runs_of(entry)
    whole = fitted_to_all(entry).predict(runs.weights_ND, runs.steps_N)
    turned = predictor(entry).fit(runs.rows(np.arange(len(runs.weights_ND))[::-1]))
    assert turned.predict(runs.weights_ND, runs.steps_N) == pytest.approx(whole, rel=0.03)


@pytest.mark.parametrize("entry", PREDICTORS)
def test_intervals_cover_runs_that_were_not_seen(entry):
    runs = runs_of(entry)
    noise_NM = np.exp(0.01 * fresh(1).standard_normal(runs.losses_NM.shape))
    noisy = type(runs)(runs.domains, runs.targets, runs.weights_ND, runs.losses_NM * noise_NM, runs.steps_N)
    first, second = np.array_split(fresh(3).permutation(len(noise_NM)), 2)
    fitted = predictor(entry).fit(noisy.rows(first))
    part = noisy.rows(second)
    low, high = fitted.interval(part.weights_ND, fitted.out_of_fold(fresh(2), folds=4), 0.9, part.steps_N)
    assert np.mean((low <= part.losses_NM) & (part.losses_NM <= high)) > 0.75
    assert (high / low).max() < 1.5


@pytest.mark.parametrize("entry", PREDICTORS)
def test_bad_runs_end_in_one_line(entry):
    runs = runs_of(entry)
    method = predictor(entry)

    def changed(**values):
        return type(runs)(**{**vars(runs), **values})

    unused = runs.weights_ND.copy()
    unused[:, 1] += unused[:, 0]
    unused[:, 0] = 0
    with pytest.raises(MixwellError, match=f"no run trains on '{runs.domains[0]}'"):
        method.fit(changed(weights_ND=unused))
    with pytest.raises(MixwellError, match=r"run \d+ sum to 2; expected 1"):
        method.fit(changed(weights_ND=2 * runs.weights_ND))
    with pytest.raises(MixwellError, match="has the weight -"):
        method.fit(changed(weights_ND=runs.weights_ND - 0.9))
    with pytest.raises(MixwellError, match=r"2 runs came; expected at least"):
        method.fit(runs.rows(np.arange(2)))
    with pytest.raises(MixwellError, match="weights of 1 domains came"):
        fitted_to_all(entry).predict(np.ones((1, 1)))


@pytest.mark.parametrize("entry", [case for case in PREDICTORS if "own" not in case.values[0].tags])
def test_the_best_mixture_is_found_and_stays_under_its_caps(entry):
    runs = runs_of(entry)
    fitted = fitted_to_all(entry)
    domains = len(runs.domains)
    found = best_weights(fitted, {runs.targets[0]: 1.0}, search=Search(samples=4000, kept=16), generator=fresh())
    assert found.weights_D.sum() == pytest.approx(1) and found.weights_D.argmax() == 0  # a domain helps itself
    assert (found.weights_D <= runs.weights_ND.max(0) + 1e-9).all()
    caps_D = np.full(domains, 1.2 / domains)
    held = best_weights(fitted, {runs.targets[0]: 1.0}, caps_D=caps_D, search=Search(samples=2000, kept=16))
    assert (held.weights_D <= caps_D + 1e-9).all() and held.weights_D.sum() == pytest.approx(1)
