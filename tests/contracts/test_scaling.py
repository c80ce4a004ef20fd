"""What every scaling law promises (family `scaling.laws`, tag `law`)."""

import functools

import numpy as np
import pytest

from mixwell.core import registry
from mixwell.core.errors import MixwellError
from mixwell.scaling.budget import Budget, best, best_interval, jacobian, next_run
from mixwell.scaling.fitting import Problem, objective


def tagged(tag):
    """Every law with a tag."""
    return [pytest.param(entry, id=entry.name) for entry in registry.family("scaling.laws") if tag in entry.tags]


LAWS = tagged("law")


def fresh(seed=0):
    return np.random.default_rng(seed)


def planted(entry, noise=0.0):
    """A law, its parameters, and runs that follow it."""
    given = entry.module().example(fresh())
    law = entry.load()(starts=6)
    curve = law.curve(given["parameters"])
    loss_N = curve.predict(given["runs"])
    scatter_N = np.exp(noise * fresh(1).standard_normal(len(loss_N)))
    return law, curve, {**given["runs"], "loss": loss_N * scatter_N}


NOISE = 0.005


@functools.cache
def fitted(entry):
    """The law's fit to its runs with noise, once for all tests that only ask it."""
    law, _, table = planted(entry, NOISE)
    return law.fit(table)


@pytest.mark.parametrize("entry", LAWS)
def test_terms_are_those_of_the_objective_and_its_gradient(entry):
    law, curve, table = planted(entry, noise=0.01)
    runs = {name: table[name] for name in law.columns}
    weights_N = fresh(2).uniform(0.5, 2.0, len(table["loss"]))
    for in_logs in (True, False):
        problem = Problem(lambda shape: law.terms(runs, shape), tuple(law.shapes.values()), table["loss"], weights_N,
                          0.005, in_logs)
        theta_P = curve.theta_P + 1e-3
        value, slope_P = objective(problem, theta_P, curve.shape_Q)
        predicted_N = np.exp(np.log(np.exp(law.terms(runs, curve.shape_Q) @ theta_P).sum(1)))
        residuals = np.log(predicted_N) - np.log(table["loss"]) if in_logs else predicted_N - table["loss"]
        by_hand = [0.5 * r * r if abs(r) <= 0.005 else 0.005 * (abs(r) - 0.0025) for r in residuals]
        assert value == pytest.approx(np.average(by_hand, weights=weights_N), rel=1e-10)
        for place in range(len(theta_P)):
            step_P = np.eye(len(theta_P))[place] * 1e-6
            above, _ = objective(problem, theta_P + step_P, curve.shape_Q)
            below, _ = objective(problem, theta_P - step_P, curve.shape_Q)
            assert slope_P[place] == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("entry", LAWS)
def test_planted_parameters_are_recovered_without_noise(entry):
    law, curve, table = planted(entry)
    fit = law.fit(table)
    assert np.abs(fit.residuals_N).max() < 1e-6
    for name, value in curve.parameters.items():
        assert fit.parameters[name] == pytest.approx(value, rel=0.02, abs=1e-4), name
    quick = entry.load()(starts=1)
    assert quick.fit(table).parameters == quick.fit(table).parameters


@pytest.mark.parametrize("entry", LAWS)
def test_under_noise_predictions_and_intervals_hold(entry):
    law, curve, table = planted(entry, NOISE)
    fit = fitted(entry)
    runs = {name: table[name] for name in law.columns}
    error_N = np.log(fit.predict(runs)) - np.log(curve.predict(runs))
    assert np.sqrt(np.mean(error_N**2)) < 0.005
    assert fit.largest_left_out() < 0.03
    low_N, high_N = fit.interval(runs, fit.bootstrap(12, fresh(3)))
    inside = np.mean((low_N <= table["loss"]) & (table["loss"] <= high_N))
    assert inside > 0.8 and (low_N < high_N).all()


@pytest.mark.parametrize("entry", LAWS)
def test_bad_tables_end_in_one_line(entry):
    law, _, table = planted(entry)
    first = law.columns[0]
    with pytest.raises(MixwellError, match=f"no column '{first}'"):
        law.fit({name: value for name, value in table.items() if name != first})
    with pytest.raises(MixwellError, match="column 'loss', run 3: nan came, expected a finite number above 0"):
        law.fit({**table, "loss": np.where(np.arange(len(table["loss"])) == 2, np.nan, table["loss"])})
    with pytest.raises(MixwellError, match="run 1: -"):
        law.fit({**table, "loss": -table["loss"]})
    with pytest.raises(MixwellError, match=r"2 runs came; \d+ parameters need"):
        law.fit({name: value[:2] for name, value in table.items()})
    with pytest.raises(MixwellError, match=f"'{first}' is 7 in every run"):
        law.fit({**table, first: np.full_like(table[first], 7.0)})
    if len(law.columns) > 1:
        together = {**table, law.columns[1]: 20 * table[first]}
        with pytest.raises(MixwellError, match="vary together"):
            law.fit(together)


@pytest.mark.parametrize("entry", tagged("budget"))
def test_the_best_model_agrees_with_brute_force(entry):
    law, curve, _ = planted(entry)
    values = {"e": [1.0, 8.0, 32.0], "g": [1.0, 4.0, 16.0], "active": [1.0, 0.25, 0.05]}
    choices = {name: values[name] for name in law.columns if name not in ("n", "d")}
    budget = Budget(flops=1e21, memory_bytes=40e9)
    found = best(curve, budget, choices)
    least = np.inf
    for n in np.geomspace(1e7, 1e12, 800):
        for other in next(iter(choices.values()), [None]):
            runs = {"n": np.array([n])} | {name: np.array([other]) for name in choices}
            if law.total_parameters(runs)[0] * 2 > 40e9:
                continue
            runs["d"] = 1e21 / law.flops_per_token(runs)
            least = min(least, curve.predict(runs)[0])
    assert found.loss <= least * (1 + 1e-9) and found.total_parameters * 2 <= 40e9 and not found.at_edge
    with pytest.raises(MixwellError, match="no model fits into 1 bytes"):
        best(curve, Budget(flops=1e21, memory_bytes=1.0), choices)


@pytest.mark.parametrize("entry", tagged("budget"))
def test_what_a_run_would_tell_is_what_it_tells(entry):
    law, _, table = planted(entry, NOISE)
    fit = fitted(entry)
    runs = {name: table[name] for name in law.columns}
    target = {name: value[:1] * 3 for name, value in runs.items()}
    gain_N = next_run(fit, runs, target)
    assert ((gain_N >= 0) & (gain_N < 1)).all()
    wanted = jacobian(fit, target)[0]
    so_far = jacobian(fit, fit.runs)
    place = int(gain_N.argmax())
    with_it = np.concatenate([so_far, jacobian(fit, runs)[place : place + 1]])
    before, after = (wanted @ np.linalg.pinv(j.T @ j, rcond=1e-12) @ wanted for j in (so_far, with_it))
    assert gain_N[place] == pytest.approx(1 - after / before, rel=1e-4)
    draws = fit.bootstrap(4, fresh(3))
    choices = {name: [float(runs[name][0])] for name in law.columns if name not in ("n", "d")}
    low, high = best_interval(draws, Budget(flops=1e20), choices)["loss"]
    assert 0 < low <= high
