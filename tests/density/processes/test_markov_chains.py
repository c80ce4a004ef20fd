"""Trajectory probabilities and EM against loops, unbiased distances, and spectral starts against random ones."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from mixwell.density.processes.markov_chains import (
    MarkovChainMixture,
    count_walks,
    example,
    pairwise_distances,
    row_distances,
)


def chains(n, length, rng, states=5, n_actions=1, peaked=0.3):
    """Walks of two chains with random rows, their actions and classes."""
    rows = rng.dirichlet(np.full(states, peaked), (2, n_actions, states))
    labels = rng.integers(0, 2, n)
    actions = rng.integers(0, n_actions, (n, length - 1))
    walks = np.zeros((n, length), dtype=int)
    walks[:, 0] = rng.integers(0, states, n)
    for t in range(length - 1):
        for i in range(n):
            walks[i, t + 1] = rng.choice(states, p=rows[labels[i], actions[i, t], walks[i, t]])
    return walks, actions, labels, rows


RNG = np.random.default_rng(0)
WALKS, ACTIONS, LABELS, ROWS = chains(60, 40, RNG)


def accuracy(found, truth):
    return max(np.mean(found == truth), np.mean(found != truth))


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_likelihood_and_an_em_step_agree_with_a_loop(smoothing):
    options = {"smoothing": smoothing, "init": "random", "random_state": 1}
    first = MarkovChainMixture(**options, max_iter=1).fit(WALKS)
    then = MarkovChainMixture(**options, max_iter=2).fit(WALKS)
    counts, starts, weight = np.full((2, 5, 5), smoothing), np.full((2, 5), smoothing), np.zeros(2)
    for walk, found in zip(WALKS, first.log_likelihood(WALKS)):
        joint = []
        for k in range(2):
            value = first.weights_[k] * first.starts_[k, walk[0]]
            for a, b in pairwise(walk):
                value *= first.transitions_[k, 0, a, b]
            joint.append(value)
        np.testing.assert_allclose(found, math.log(sum(joint)), rtol=1e-9)
        for k in range(2):
            share = joint[k] / sum(joint)
            weight[k] += share / 60
            starts[k, walk[0]] += share
            for a, b in pairwise(walk):
                counts[k, a, b] += share
    np.testing.assert_allclose(then.weights_, weight, atol=1e-9)
    np.testing.assert_allclose(then.starts_, starts / starts.sum(1, keepdims=True), atol=1e-9)
    np.testing.assert_allclose(then.transitions_[:, 0], counts / counts.sum(2, keepdims=True), atol=1e-9)


@pytest.mark.parametrize("init", ["spectral", "random"])
def test_em_never_descends(init):
    model = MarkovChainMixture(init=init, random_state=0, tol=0.0, max_iter=25, smoothing=0.3).fit(WALKS)
    prior = 0.3 * (np.log(model.starts_).sum() + np.log(model.transitions_).sum())
    assert model.lower_bounds_[-1] == pytest.approx((model.log_likelihood(WALKS).sum() + prior) / 60)
    assert np.diff(model.lower_bounds_).min() >= -1e-10
    np.testing.assert_allclose(model.transitions_.sum(-1), 1)
    np.testing.assert_allclose(model.predict_proba(WALKS).sum(1), 1)


def test_distances_of_one_class_average_to_zero_and_of_two_to_their_gap():
    rows = np.array([[[0.7, 0.2, 0.1]], [[0.1, 0.3, 0.6]]])  # one state met, three that follow
    halves = []
    for _ in range(2):
        draws = [np.random.default_rng(n + 1000 * len(halves)).multinomial(12, rows[n % 2, 0]) for n in range(300)]
        halves.append(np.array(draws, dtype=float)[:, None])
    distances = pairwise_distances((halves[0], halves[1]), 2, 1)
    same = distances[::2, ::2][~np.eye(150, dtype=bool)].mean()
    gap = ((rows[0] - rows[1]) ** 2).sum()
    plain = ((halves[0][::2, None, 0] - halves[0][None, ::2, 0]) ** 2).sum(-1).mean() / 144
    assert abs(same) < 0.2 * plain and abs(distances[::2, 1::2].mean() - gap) < 0.1 * gap


def leading(square, rank):
    """The eigenvectors of the largest eigenvalues."""
    return np.linalg.eigh(square)[1][:, -rank:]


def slow_row_distances(early, late, rank):
    """(e_n - e_m)' P (l_n - l_m), P onto the leading left and right directions of sum_n e_n l_n'."""
    moment = sum(np.outer(e, ell) for e, ell in zip(early, late))
    span = np.hstack([leading(moment @ moment.T, rank), leading(moment.T @ moment, rank)])
    onto = span @ np.linalg.pinv(span)
    return np.array([[(e - f) @ onto @ (ell - m) for f, m in zip(early, late)] for e, ell in zip(early, late)])


@pytest.mark.parametrize("rank", [1, 2])
def test_distances_are_taken_in_the_leading_subspace_of_both_halves(rank):
    early, late = np.random.default_rng(rank).dirichlet(np.ones(7), (2, 6))
    slow = slow_row_distances(early, late, rank)
    np.testing.assert_allclose(row_distances(early, late, rank), slow, atol=1e-10)
    assert not np.allclose(slow, slow_row_distances(early, late, 7), atol=1e-3)  # the subspace leaves something out


@pytest.mark.parametrize("min_visits", [1, 3])
def test_the_row_that_differs_most_counts_and_pairs_without_one_get_the_mean(min_visits):
    early, late = np.random.default_rng(5).integers(0, 3, (2, 8, 3, 3)) * (np.arange(24).reshape(8, 3, 1) % 5 > 1)
    found = np.full((8, 8), -np.inf)
    for row in range(3):
        met = [n for n in range(8) if min(early[n, row].sum(), late[n, row].sum()) >= min_visits]
        shares = [[half[n, row] / half[n, row].sum() for n in met] for half in (early, late)]
        distance = slow_row_distances(*shares, 1) if len(met) > 1 else np.full((len(met), len(met)), -np.inf)
        for a, n in enumerate(met):
            for b, m in enumerate(met):
                found[n, m] = max(found[n, m], distance[a, b])
    found[np.isinf(found)] = found[np.isfinite(found)].mean()
    np.testing.assert_allclose(pairwise_distances((early, late), 1, min_visits), found, atol=1e-10)


def test_counts_agree_with_a_loop():
    walks = count_walks([[0, 1, 2, 0, 1, 1, 0, 2, 1, 0, 1]], [[0, 1, 0, 1, 0, 1, 0, 1, 0, 1]], 3, 2)
    path, taken = [0, 1, 2, 0, 1, 1, 0, 2, 1, 0, 1], [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    expected = np.zeros((3, 6, 3))
    for t, (a, b) in enumerate(pairwise(path)):
        for part, inside in enumerate((True, t < 4, t >= 6)):
            expected[part, taken[t] * 3 + a, b] += inside
    np.testing.assert_array_equal(walks.counts_NRS[0], expected[0])
    np.testing.assert_array_equal(walks.halves[0][0], expected[1])
    np.testing.assert_array_equal(walks.halves[1][0], expected[2])


def test_spectral_start_finds_the_classes():
    model = MarkovChainMixture(random_state=0).fit(WALKS)
    assert accuracy(model.predict(WALKS), LABELS) > 0.9
    order = np.argsort([np.abs(model.transitions_[k, 0] - ROWS[0, 0]).sum() for k in range(2)])
    assert np.abs(model.transitions_[order, 0] - ROWS[:, 0]).mean() < 0.08


def test_decision_processes_differ_by_action():
    rng = np.random.default_rng(3)
    walks, actions, labels, _ = chains(60, 40, rng, states=3, n_actions=2)
    model = MarkovChainMixture(random_state=0).fit(walks, actions)
    assert model.transitions_.shape == (2, 2, 3, 3) and accuracy(model.predict(walks, actions), labels) > 0.9
    with pytest.raises(ValueError, match="actions are missing"):
        model.predict(walks)
    with pytest.raises(ValueError, match="action 7 was not seen"):
        model.predict(walks, np.full_like(actions, 7))
    with pytest.raises(ValueError, match="fitted without actions"):
        MarkovChainMixture(random_state=0, max_iter=1).fit(walks).predict(walks, actions)


def test_one_chain_is_the_table_of_frequencies():
    model = MarkovChainMixture(n_components=1, smoothing=0.0).fit(WALKS)
    table = np.zeros((5, 5))
    np.add.at(table, (WALKS[:, :-1].ravel(), WALKS[:, 1:].ravel()), 1)
    np.testing.assert_allclose(model.transitions_[0, 0], table / table.sum(1, keepdims=True))


def test_more_random_starts_are_no_worse_and_lists_of_any_length_are_taken():
    ragged = [w[: 20 + i % 7] for i, w in enumerate(WALKS)]
    one = MarkovChainMixture(init="random", random_state=0).fit(ragged)
    more = MarkovChainMixture(init="random", random_state=0, n_init=4).fit(ragged)
    assert more.lower_bounds_[-1] >= one.lower_bounds_[-1]
    strict = pairwise_distances(count_walks(ragged, None, 5, 1).halves, 2, 3)
    assert not np.allclose(strict, pairwise_distances(count_walks(ragged, None, 5, 1).halves, 2, 1))
    assert np.isfinite(MarkovChainMixture(min_visits=50, random_state=0).fit(ragged).lower_bounds_[-1])


def test_refuses():
    with pytest.raises(ValueError, match=r"trajectories\[1\] holds float64 0"):
        MarkovChainMixture().fit([[0, 1], [0.0, 1.0]])
    with pytest.raises(ValueError, match="at least two states"):
        MarkovChainMixture().fit([[0]])
    with pytest.raises(ValueError, match=r"actions\[0\] has 5 entries for 3 states"):
        MarkovChainMixture().fit([[0, 1, 0]], [[0, 1, 0, 1, 0]])
    with pytest.raises(ValueError, match="state 9 was not seen in fit"):
        MarkovChainMixture(random_state=0).fit(WALKS).predict([[0, 9]])
    with pytest.raises(ValueError, match="1 trajectories for 2 components"):
        MarkovChainMixture().fit([[0, 1, 0]])


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    labels = made["estimator"].fit(made["trajectories"]).predict(made["trajectories"])
    assert accuracy(labels, np.arange(30) % 2) == 1
