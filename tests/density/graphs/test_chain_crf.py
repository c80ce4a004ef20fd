"""Sums over paths against enumeration, gradients against differences, and fits against logistic regression."""

import functools
import itertools
import math

import numpy as np
import pytest
import scipy.sparse
from scipy.optimize import approx_fprime
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from mixwell.density.chains import likeliest_path
from mixwell.density.graphs.chain_crf import ChainCRF, Sequences, Weights, climb

RNG = np.random.default_rng(0)
LENGTHS = np.array([4, 1, 3])
X, CODES = RNG.normal(size=(8, 2)), np.array([0, 2, 1, 1, 2, 0, 0, 1])
W = Weights(RNG.normal(size=(3, 2)), RNG.normal(size=3), RNG.normal(size=3), RNG.normal(size=(3, 3)))


def path_score(weights, x, path):
    """s(y, x) by a loop."""
    total = weights.start_K[path[0]]
    for t, k in enumerate(path):
        total += weights.coef_KF[k] @ x[t] + weights.intercept_K[k]
        if t:
            total += weights.transitions_KK[path[t - 1], k]
    return total


def enumerated(weights, x):
    """Every path of a sequence and its probability, and log Z."""
    paths = list(itertools.product(range(3), repeat=len(x)))
    values = np.array([path_score(weights, x, path) for path in paths])
    log_z = math.log(np.exp(values).sum())
    return paths, np.exp(values - log_z), log_z


def sequences():
    ends = np.cumsum(LENGTHS)
    return [(X[end - n : end], CODES[end - n : end]) for end, n in zip(ends, LENGTHS)]


def test_marginals_and_partition_are_those_of_all_paths():
    found = Sequences(X, LENGTHS).posterior(W)
    pairs = np.zeros((3, 3))
    for b, (x, _) in enumerate(sequences()):
        paths, p, log_z = enumerated(W, x)
        assert found.log_partition_B[b] == pytest.approx(log_z, abs=1e-10)
        label = np.zeros((4, 3))
        for path, share in zip(paths, p):
            for t, k in enumerate(path):
                label[t, k] += share
                if t:
                    pairs[path[t - 1], k] += share
        np.testing.assert_allclose(found.label_BTK[b], label, atol=1e-10)
    np.testing.assert_allclose(found.pair_KK, pairs, atol=1e-10)


def test_the_likeliest_path_is_the_best_of_all():
    for x, _ in sequences():
        paths, p, log_partition = enumerated(W, x)
        value, path = likeliest_path(W.start_K, W.transitions_KK, x @ W.coef_KF.T + W.intercept_K)
        assert tuple(path) == paths[p.argmax()]
        assert value == pytest.approx(np.log(p.max()) + log_partition)


def test_log_likelihood_and_its_gradient():
    total, slope = climb(Sequences(X, LENGTHS), CODES, W)
    wanted = sum(path_score(W, x, codes) - enumerated(W, x)[2] for x, codes in sequences())
    assert total == pytest.approx(wanted, abs=1e-10)
    for place, part in enumerate(W):
        def moved(flat, place=place, part=part):
            return climb(Sequences(X, LENGTHS), CODES, W._replace(**{W._fields[place]: flat.reshape(part.shape)}))[0]
        np.testing.assert_allclose(slope[place].ravel(), approx_fprime(part.ravel(), moved, 1e-6), atol=2e-5)


def test_large_scores_neither_overflow_nor_vanish():
    big = Weights(*(400 * part for part in W[:3]), W.transitions_KK)
    found = Sequences(X, LENGTHS).posterior(big)
    assert np.isfinite(found.log_partition_B).all() and np.isfinite(found.pair_KK).all()
    np.testing.assert_allclose(found.label_BTK.sum(2), np.arange(4) < LENGTHS[:, None])
    assert found.pair_KK.sum() == pytest.approx(5)


def chain(n, length, rng, stay=0.9):
    """Noisy rows of two labels that mostly stay."""
    y = np.zeros((n, length), dtype=int)
    y[:, 0] = rng.integers(0, 2, n)
    for t in range(1, length):
        y[:, t] = np.where(rng.random(n) < stay, y[:, t - 1], 1 - y[:, t - 1])
    return y.ravel()[:, None] + rng.normal(size=(n * length, 1)), np.array(["no", "yes"])[y.ravel()], [length] * n


TRAIN, TEST = chain(40, 10, np.random.default_rng(1)), chain(40, 10, np.random.default_rng(2))


@functools.cache
def learned():
    return ChainCRF().fit(*TRAIN)


def test_rows_apart_make_logistic_regression():
    x, y, _ = TRAIN
    alone = ChainCRF(variance=4.0, tol=1e-7).fit(x, y, np.ones(len(y), int))
    # two classes, two biases: theta = (a, -a) costs a^2 where logistic regression pays (2 a)^2 / 2 of its one
    plain = LogisticRegression(C=8.0, tol=1e-9).fit(np.c_[x, np.ones((len(x), 2))], y)
    ours = alone.coef_[1] - alone.coef_[0]
    np.testing.assert_allclose(ours, plain.coef_[0, :1], atol=2e-3)
    assert np.abs(alone.transitions_).max() == 0


def test_neighbours_help_and_paths_are_more_probable_than_rows_one_by_one():
    x, y, lengths = TEST
    alone = LogisticRegression().fit(*TRAIN[:2]).score(x, y)
    assert learned().score(x, y, lengths=lengths) > alone + 0.03
    rows = ChainCRF(decode="row").fit(*TRAIN).predict(x, lengths)
    np.testing.assert_array_equal(rows, learned().classes_[learned().predict_proba(x, lengths).argmax(1)])
    path = learned().predict(x, lengths)
    assert (rows != path).any()
    assert (learned().log_likelihood(x, path, lengths) >= learned().log_likelihood(x, rows, lengths) - 1e-12).all()
    assert learned().score(x, y, np.r_[1.0, np.zeros(len(y) - 1)], lengths) == float(path[0] == y[0])


def test_the_optimum_has_no_slope_and_sgd_comes_near():
    codes = (TRAIN[1] == "yes").astype(int)
    model = ChainCRF(tol=1e-6, variance=2.0).fit(*TRAIN)
    _, slope = climb(Sequences(TRAIN[0], np.array(TRAIN[2])), codes, model._weights())
    for part, own in zip(slope, model._weights()):
        np.testing.assert_allclose(part, own / 2.0, atol=1e-3)
    assert np.diff(model.log_posteriors_).min() > -1e-9


def test_steps_of_one_sequence_at_a_time_come_near_the_optimum():
    few = TRAIN[0][:100], TRAIN[1][:100], TRAIN[2][:10]
    best = ChainCRF(tol=1e-6, variance=1.0).fit(*few)
    rough = ChainCRF(solver="sgd", max_iter=20, lr=0.3, variance=1.0, random_state=0).fit(*few)
    assert len(rough.log_posteriors_) == rough.n_iter_ == 20
    np.testing.assert_allclose(rough.coef_, best.coef_, atol=0.15)
    np.testing.assert_allclose(rough.transitions_, best.transitions_, atol=0.2)


def test_sparse_rows_are_dense_ones():
    x, y, lengths = TRAIN
    wide = np.c_[x, np.eye(3)[np.arange(len(x)) % 3]]
    dense, sparse = (ChainCRF().fit(form(wide), y, lengths) for form in (np.asarray, scipy.sparse.csr_matrix))
    np.testing.assert_allclose(sparse.coef_, dense.coef_, atol=1e-8)
    np.testing.assert_array_equal(sparse.predict(scipy.sparse.csr_matrix(wide), lengths), dense.predict(wide, lengths))


@pytest.mark.parametrize(("options", "words"), [
    ({"variance": 0.0}, "variance is 0.0"), ({"tol": -1.0}, "tol is -1.0"), ({"solver": "adam"}, "solver is 'adam'"),
    ({"decode": "beam"}, "decode is 'beam'"), ({"lr": 0.0}, "lr is 0.0"), ({"max_iter": 0}, "max_iter is 0")])
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        ChainCRF(**options).fit(X, CODES)


def test_refuses():
    with pytest.raises(ValueError, match=r"lengths \[3, 4\] for 8 rows"):
        ChainCRF().fit(X, CODES, [3, 4])
    with pytest.raises(ValueError, match="y holds one class"):
        ChainCRF().fit(X, np.zeros(8))
    with pytest.raises(ValueError, match="label 'maybe' was not seen"):
        learned().log_likelihood(TEST[0], ["maybe"] * len(TEST[1]), TEST[2])
    for wrong in (TEST[1][:-1], np.r_[TEST[1], TEST[1][:1]]):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            learned().log_likelihood(TEST[0], wrong, TEST[2])
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        ChainCRF(max_iter=1).fit(*TRAIN)
