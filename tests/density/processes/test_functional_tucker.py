"""Smoother against dense Gaussian processes, moments against loops, and fits against what made the entries."""

import functools
import itertools

import numpy as np
import pytest

from mixwell.density.processes import functional_tucker as tucker
from mixwell.density.processes._matern import smooth, steps
from mixwell.density.processes.functional_tucker import FunctionalTucker

RNG = np.random.default_rng(0)
PLACES = np.array([0.0, 0.01, 0.3, 0.35, 1.2, 3.0])


def dense_kernel(a, b, kernel, length, variance):
    r = np.abs(a[:, None] - b) / length
    return variance * (np.exp(-r) if kernel == "matern12" else (1 + np.sqrt(3) * r) * np.exp(-np.sqrt(3) * r))


@pytest.mark.parametrize("kernel", ["matern12", "matern32"])
def test_the_smoother_is_the_dense_posterior(kernel):
    """Two functions that the entries tie together; at one place nothing is known."""
    root = RNG.normal(size=(6, 2, 2))
    precision, pull = root @ root.swapaxes(1, 2), RNG.normal(size=(6, 2))
    precision[3], pull[3] = 0, 0
    found = smooth(steps(PLACES, 2, kernel, 0.4, 1.3), precision, pull)
    prior = np.kron(dense_kernel(PLACES, PLACES, kernel, 0.4, 1.3), np.eye(2))
    known = np.zeros((12, 12))
    for u in range(6):
        known[2 * u : 2 * u + 2, 2 * u : 2 * u + 2] = precision[u]
    cov = np.linalg.inv(np.linalg.inv(prior) + known)
    mean = cov @ pull.ravel()
    np.testing.assert_allclose(found.mean_UR.ravel(), mean, atol=1e-8)
    for u in range(6):
        np.testing.assert_allclose(found.cov_URR[u], cov[2 * u : 2 * u + 2, 2 * u : 2 * u + 2], atol=1e-8)
    log_mass = 0.5 * (pull.ravel() @ mean - np.linalg.slogdet(np.eye(12) + prior @ known)[1])
    assert found.log_mass == pytest.approx(log_mass, abs=1e-8)
    told = pull.ravel() @ mean - 0.5 * np.trace(known @ (cov + np.outer(mean, mean)))
    kl = 0.5 * (np.trace(np.linalg.solve(prior, cov + np.outer(mean, mean))) - 12
                + np.linalg.slogdet(prior)[1] - np.linalg.slogdet(cov)[1])
    assert told - found.log_mass == pytest.approx(kl, abs=1e-7)


def believed(K=3, R=2, N=7):
    """A state of random beliefs, and the entries that it is about."""
    X, y = RNG.integers(0, 3, (N, K)).astype(float), RNG.normal(size=N)
    entries = tucker.Entries(X, y)
    modes = []
    for place in entries.places:
        mean, root = RNG.normal(size=(len(place), R)), RNG.normal(size=(len(place), R, R))
        cov = root @ root.swapaxes(1, 2)
        modes.append(tucker.Mode(place, 0.5, 0 * cov, 0 * mean, mean, cov + mean[:, :, None] * mean[:, None]))
    mean, root = RNG.normal(size=R**K), RNG.normal(size=(R**K, R**K))
    core = tucker.Core(mean, root @ root.T + np.outer(mean, mean))
    return entries, tucker.State(tuple(modes), core, 2.0, 3.0)


def test_what_entries_tell_core_modes_and_noise_by_loops():
    entries, state = believed()
    config = tucker.Config(rank=2, core_variance=0.7, noise_shape=0.4, noise_rate=0.6)
    tau, cells = 2 / 3, list(itertools.product(range(2), repeat=3))
    mean_w, square_w = state.core.mean_P.reshape(2, 2, 2), state.core.second_PP.reshape((2,) * 6)
    precision, told = np.eye(8) / 0.7, np.zeros(8)
    misses, of_mode, pull = 0.0, np.zeros((3, 2, 2)), np.zeros((3, 2))
    for n, y in enumerate(entries.y_N):
        at = [entries.at[k][n] for k in range(3)]
        u = [state.modes[k].mean_UR[at[k]] for k in range(3)]
        uu = [state.modes[k].second_URR[at[k]] for k in range(3)]
        misses += y**2
        for i, p in enumerate(cells):
            z = u[0][p[0]] * u[1][p[1]] * u[2][p[2]]
            told[i] += tau * y * z
            misses -= 2 * y * mean_w[p] * z
            pull[at[1], p[1]] += tau * y * mean_w[p] * u[0][p[0]] * u[2][p[2]]
            for j, q in enumerate(cells):
                others = uu[0][p[0], q[0]] * uu[2][p[2], q[2]]
                precision[i, j] += tau * others * uu[1][p[1], q[1]]
                misses += square_w[p + q] * others * uu[1][p[1], q[1]]
                of_mode[at[1], p[1], q[1]] += tau * square_w[p + q] * others
    core = tucker.update_core(entries, state, config)
    np.testing.assert_allclose(core.mean_P, np.linalg.solve(precision, told), atol=1e-9)
    np.testing.assert_allclose(core.second_PP - np.outer(core.mean_P, core.mean_P), np.linalg.inv(precision), atol=1e-9)
    assert entries.misses(state) == pytest.approx(misses)
    mode = tucker.update_mode(entries, state, 1, config)
    np.testing.assert_allclose(mode.precision_URR, of_mode[: len(mode.place_U)], atol=1e-9)
    np.testing.assert_allclose(mode.pull_UR, pull[: len(mode.place_U)], atol=1e-9)


def test_the_bound_is_below_the_evidence_and_touches_it_where_the_core_is_known():
    """A core and a noise that are known make a Gaussian process of one mode, whose evidence is exact."""
    x = np.array([0.0, 0.2, 0.5, 1.1])
    y = np.array([0.3, -0.2, 0.9, 0.1])
    config = tucker.Config(rank=1, length=0.4, noise_shape=1e9, noise_rate=1e8)  # precision 10
    entries = tucker.Entries(x[:, None], y)
    one = tucker.Core(np.ones(1), np.ones((1, 1)))
    state = tucker.State((tucker.first(entries, [0.4], config, np.random.RandomState(0)).modes[0],), one, 1e9, 1e8)
    mode = tucker.update_mode(entries, state, 0, config)
    state = tucker.State((mode,), one, 1e9 + 2, 1e8 + entries.misses(tucker.State((mode,), one, 1, 1)) / 2)
    cov = dense_kernel(x, x, "matern32", 0.4, 1.0) + 0.1 * np.eye(4)
    evidence = -0.5 * (y @ np.linalg.solve(cov, y) + np.linalg.slogdet(cov)[1] + 4 * np.log(2 * np.pi))
    assert tucker.bound(state, config, 4) == pytest.approx(evidence, abs=1e-4)


def entries_of(rng, n, noise=0.03):
    x = rng.random((n, 2))
    clean = np.sin(4 * x[:, 0]) * np.cos(5 * x[:, 1]) + 0.5 * np.cos(3 * x[:, 0]) * x[:, 1]
    return x, 3 + 2 * (clean + noise * rng.normal(size=n)), 3 + 2 * clean


X, Y, _ = entries_of(np.random.default_rng(1), 150)


@functools.cache
def learned():
    return FunctionalTucker(rank=2, length=(0.5, 0.6), max_iter=25, n_init=1, random_state=0).fit(X, Y)


def test_indexes_never_seen_are_predicted_and_the_noise_is_found():
    x, _, clean = entries_of(np.random.default_rng(2), 100)
    mean, std = learned().predict(x, return_std=True)
    assert np.sqrt(np.mean((mean - clean) ** 2)) < 0.1 * clean.std()
    assert 0.03 < learned().noise_std_ < 0.12 and learned().core_.shape == (2, 2)
    assert np.mean(np.abs(mean - clean) < 3 * std) > 0.7
    assert np.diff(learned().lower_bounds_).min() > -1e-9


def test_deviations_are_those_of_draws_from_the_posterior():
    rng, place = np.random.default_rng(3), X[:1] + 0.01
    core = learned()._state.core
    cov = core.second_PP - np.outer(core.mean_P, core.mean_P)
    w = rng.multivariate_normal(core.mean_P, cov, 20_000).reshape(-1, 2, 2)
    mean, spread = zip(*(learned().functions(k, place[:, k]) for k in range(2)))
    u, v = (rng.multivariate_normal(m[0], c[0], 20_000) for m, c in zip(mean, spread))
    drawn = learned().mean_ + learned().scale_ * np.einsum("nab,na,nb->n", w, u, v)
    found, std = learned().predict(place, return_std=True)
    assert found[0] == pytest.approx(drawn.mean(), abs=5 * drawn.std() / 141)
    assert std[0] == pytest.approx(drawn.std(), rel=0.05)


def test_far_outside_nothing_is_known_but_the_mean():
    mean, std = learned().predict([[50.0, -40.0]], return_std=True)
    assert mean[0] == pytest.approx(learned().mean_, abs=1e-6) and std[0] > Y.std() / 3
    again, _ = learned().functions(0, learned()._state.modes[0].place_U)
    before = learned()._state.modes[0].mean_UR
    np.testing.assert_allclose(again, before, atol=1e-8)  # new places change nothing at old ones


def test_options():
    few = X[:40], Y[:40]
    short = {"rank": 1, "held_steps": 1, "max_iter": 2, "random_state": 0}
    rough = FunctionalTucker(**short, kernel="matern12", variance=2.0, core_variance=3.0, tol=1e-3, n_init=1).fit(*few)
    assert np.isfinite(rough.predict(X[:3])).all()
    more, one = (FunctionalTucker(**short, n_init=n, noise_shape=1.0, noise_rate=0.5).fit(*few) for n in (3, 1))
    assert more.lower_bounds_[-1] >= one.lower_bounds_[-1]


def test_the_noise_is_held_at_first():
    config = tucker.Config(held_steps=2, max_iter=1, length=0.5)
    entries = tucker.Entries(X[:30], (Y[:30] - Y.mean()) / Y.std())
    start = tucker.first(entries, [0.5, 0.5], config, np.random.RandomState(0))
    assert start.rate / start.shape == tucker.HELD
    by_hand = tucker.update_means(entries, tucker.update_means(entries, start, config), config)
    assert (by_hand.shape, by_hand.rate) == (start.shape, start.rate)
    wanted, height = tucker.improve(entries, by_hand, config)
    run = tucker.climbed(entries, start, config)
    assert run.bounds == [height] and run.state.rate == wanted.rate != start.rate


def test_options_out_of_range():
    few = X[:40], Y[:40]
    for options, words in [({"rank": 0}, "rank is 0"), ({"kernel": "rbf"}, "kernel is 'rbf'"), ({"tol": -1}, "tol is"),
                           ({"held_steps": -1}, "held_steps is"),
                           ({"length": (1.0, 0.0)}, r"length is \(1.0, 0.0\)"),
                           ({"length": [1.0] * 3}, "3 values for 2")]:
        with pytest.raises(ValueError, match=words):
            FunctionalTucker(**options).fit(*few)
