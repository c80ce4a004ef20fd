"""The semimetric by brute force, the noise against closed forms and divergences, and what neighbours may change."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from sklearn.base import BaseEstimator

from mixwell.core.errors import MixwellError
from mixwell.core.registry import find
from mixwell.density.robust._privacy import (
    largest_radius,
    noise_scale,
    reach,
    renyi_bound,
    spread,
    truncated_laplace,
)
from mixwell.density.robust.private import (
    Parameters,
    PrivateGaussianMixture,
    component_costs,
    example,
    mask,
    neighbours,
    parameters,
    semimetric,
)


class Moments(BaseEstimator):
    """One normal component; refuses rows beyond `limit`."""

    def __init__(self, limit=math.inf):
        self.limit = limit

    def fit(self, X):
        if np.abs(X).max() > self.limit:
            raise ValueError(f"row {X[np.abs(X).argmax()]} is too large")
        self.weights_, self.means_ = np.ones(1), X.mean(0)[None]
        self.covariances_ = np.cov(X.T, bias=True).reshape(1, X.shape[1], -1)
        return self


class Scatter(Moments):
    """Blocks that agree on nothing."""

    def __init__(self, random_state=None):
        self.random_state = random_state

    def fit(self, X):
        self.weights_, self.covariances_ = np.ones(1), np.eye(X.shape[1])[None]
        self.means_ = np.full((1, X.shape[1]), 100.0 * self.random_state)
        return self


def draw(rng, K, D, near=None, step=1.0):
    """A mixture, or one within about `step` of another."""
    if near is None:
        roots = rng.normal(size=(K, D, D)) + 2 * np.eye(D)
        return parameters(rng.dirichlet(np.full(K, 5.0)), rng.normal(size=(K, D)), roots @ np.swapaxes(roots, 1, 2))
    w, m, c, _ = near
    turn = np.eye(D) + 0.3 * step * rng.normal(size=(K, D, D))
    order = rng.permutation(K)
    return parameters(np.abs(w + 0.3 * step * rng.normal(size=K) / K)[order],
                      (m + 0.3 * step * rng.normal(size=(K, D)))[order],
                      (turn @ c @ np.swapaxes(turn, 1, 2))[order])


def cost_by_hand(one, i, other, j):
    gap = one.means[i] - other.means[j]
    lengths = [gap @ np.linalg.inv(c) @ gap for c in (one.covariances[i], other.covariances[j])]
    eigenvalues = np.linalg.eigvals(np.linalg.inv(one.covariances[i]) @ other.covariances[j]).real
    weights = len(one.weights) ** 2 * (one.weights[i] - other.weights[j]) ** 2
    return weights + max(lengths) + sum(math.log(v) ** 2 for v in eigenvalues) / 2


@pytest.mark.parametrize(("K", "D"), [(1, 1), (2, 3), (4, 2), (6, 1)])
def test_semimetric_is_the_least_over_all_orders(K, D):
    rng = np.random.default_rng(K)
    for near in (None, draw(rng, K, D)):
        one, other = near or draw(rng, K, D), draw(rng, K, D, near)
        cost = np.array([[cost_by_hand(one, i, other, j) for j in range(K)] for i in range(K)])
        best = min(sum(cost[i, p[i]] for i in range(K)) for p in itertools.permutations(range(K)))
        np.testing.assert_allclose(semimetric(one, other), math.sqrt(best), rtol=1e-8)
        np.testing.assert_allclose(semimetric(other, one), math.sqrt(best), rtol=1e-8)


def test_an_assignment_is_solved_where_two_components_have_the_same_nearest():
    one = parameters([0.5, 0.5], [[0.0], [0.4]], np.ones((2, 1, 1)))
    other = parameters([0.5, 0.5], [[0.3], [9.0]], np.ones((2, 1, 1)))
    assert component_costs(one, Parameters(*(v[None] for v in other)))[0].argmin(-1).tolist() == [0, 0]
    np.testing.assert_allclose(semimetric(one, other), math.sqrt(0.09 + 8.6**2))


def test_semimetric_does_not_see_affine_maps_and_stretches_triangles_by_no_more_than_spread():
    rng = np.random.default_rng(0)
    for _ in range(40):
        one = draw(rng, 2, 2)
        two, three = draw(rng, 2, 2, one, 0.7), draw(rng, 2, 2, one, 0.7)
        a, b = rng.normal(size=(2, 2)) + np.eye(2), 1e6 * rng.normal(size=2)
        moved = [parameters(w, m @ a.T + b, a @ c @ a.T) for w, m, c, _ in (one, two)]
        np.testing.assert_allclose(semimetric(*moved), semimetric(one, two), rtol=1e-6)
        radius = max(semimetric(one, two), semimetric(one, three))
        assert semimetric(two, three) <= spread(radius)
    one, two, three = (parameters([1.0], [[m]], [[[v]]]) for m, v in (
        (0.0, 1.0), (-math.sqrt(0.5) * math.exp(-0.5), math.exp(-1)), (1.0, 1.0)))
    np.testing.assert_allclose([semimetric(one, two), semimetric(one, three)], 1)
    assert 2.4 < semimetric(two, three) <= spread(1.0)  # no metric


@pytest.mark.parametrize(("epsilon", "delta"), [(0.3, 1e-2), (2.0, 1e-3), (9.0, 0.2)])
def test_truncated_laplace_noise_hides_its_sensitivity(epsilon, delta):
    step = 0.4
    edge = reach(step, epsilon, delta)
    np.testing.assert_allclose(edge, step / epsilon * math.log(1 + math.expm1(epsilon) / (2 * delta)))
    norm = epsilon / (2 * step * -math.expm1(-edge * epsilon / step))

    def density(z):
        return norm * math.exp(-abs(z) * epsilon / step) if abs(z) <= edge else 0.0

    for u in (0.0, 0.2, 0.5, 0.9, 1.0):
        z = truncated_laplace(u, step, epsilon, delta)
        assert -edge - 1e-12 <= z <= edge + 1e-12
        np.testing.assert_allclose(quad(density, -edge, z, points=[min(0.0, z)], limit=200)[0], u, atol=1e-7)
    told = quad(lambda z: max(density(z) - math.exp(epsilon) * density(z - step) * (1 + 1e-9), 0), -edge, edge,
                points=[step - edge, 0.0, step], limit=200)[0]
    np.testing.assert_allclose(told, delta, rtol=1e-6)  # all of it where the neighbour cannot be


def test_masking_has_the_moments_of_its_closed_form():
    K, D, noise = 40_000, 2, 0.4
    root = np.array([[2.0, 0.0], [1.0, 0.5]])
    one = parameters(np.full(K, 1 / K), np.tile([1e3, -5.0], (K, 1)), np.tile(root @ root.T, (K, 1, 1)))
    weights, means, covariances = mask(one, noise, np.random.RandomState(0))
    white = (means - [1e3, -5.0]) @ np.linalg.inv(root).T / noise
    np.testing.assert_allclose(white.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(white.T @ white / K, np.eye(D), atol=0.03)
    np.testing.assert_allclose([weights.sum(), (K * weights).std()], [1, noise], rtol=0.02)
    h = noise / math.sqrt(2)
    inner = np.linalg.inv(root) @ covariances @ np.linalg.inv(root).T
    np.testing.assert_allclose(inner.mean(0), (1 + D * h**2) * np.eye(D), atol=0.02)
    variance = np.where(np.eye(D) > 0, 4 * h**2 + 2 * D * h**4, 2 * h**2 + D * h**4)
    np.testing.assert_allclose(inner.var(0), variance, rtol=0.05)


def test_masked_weights_are_a_distribution_whatever_the_noise():
    one = parameters([1.0, 0.0], np.zeros((2, 1)), np.ones((2, 1, 1)))
    rng = np.random.RandomState(1)
    found = np.array([mask(one, 20.0, rng)[0] for _ in range(50)])
    np.testing.assert_allclose(found.sum(1), 1)
    assert found.min() == 0 and (found == 0.5).all(1).any()  # also where every weight was cut
    assert mask(one, 0.0, rng)[0].tolist() != mask(one, 0.0, rng)[0].tolist()  # the order is random


def exact_divergence(order, one, two, noise):
    """Renyi divergence of (weights, means, factors) whose products are the releases, components in the same order."""
    K, D = one.means.shape
    total = order * K**2 * ((one.weights - two.weights) ** 2).sum() / (2 * noise**2)
    for i in range(K):
        first, second = one.covariances[i], two.covariances[i]
        root = np.linalg.cholesky(first)
        values, vectors = np.linalg.eigh(np.linalg.inv(root) @ second @ np.linalg.inv(root).T)
        polar = root @ (vectors * np.sqrt(values)) @ vectors.T
        for column in range(D + 1):
            gap, scale = (one.means[i] - two.means[i], noise) if column == D else (
                root[:, column] - polar[:, column], noise / math.sqrt(2))
            between = scale**2 * (order * second + (1 - order) * first)
            if np.linalg.eigvalsh(between).min() <= 0:
                return math.inf
            dets = [np.linalg.slogdet(c)[1] for c in (between, scale**2 * first, scale**2 * second)]
            total += order / 2 * gap @ np.linalg.inv(between) @ gap - (
                dets[0] - (1 - order) * dets[1] - order * dets[2]) / (2 * (order - 1))
    return total


@pytest.mark.parametrize(("K", "D"), [(1, 1), (2, 2), (3, 1)])
def test_the_renyi_bound_is_above_exact_divergences_of_mixtures_that_near(K, D):
    rng, ratios = np.random.default_rng(K), []
    for _ in range(12):
        one = draw(rng, K, D)
        shrink = np.eye(D) - 0.05 * np.abs(rng.normal(size=(K, D, 1))) * np.eye(D)
        two = parameters(one.weights + 0.01 * rng.random(K), one.means + 0.02 * rng.normal(size=(K, D)),
                         shrink @ one.covariances @ shrink)
        gamma = math.sqrt(sum(cost_by_hand(one, i, two, i) for i in range(K)))
        for order in (1.5, 3.0):
            bound = float(renyi_bound(order, gamma, 0.5, D))
            ratios += [exact_divergence(order, *pair, 0.5) / bound for pair in ((one, two), (two, one))]
    assert 0.3 < max(ratios) <= 1
    assert math.isinf(renyi_bound(20.0, 0.5, 1.0, D))


def test_the_renyi_bound_is_tight_where_one_covariance_shrinks():
    gamma, noise = 0.02, 0.3
    one = parameters([1.0], np.zeros((1, 1)), np.ones((1, 1, 1)))
    two = parameters([1.0], np.zeros((1, 1)), np.full((1, 1, 1), math.exp(-math.sqrt(2) * gamma)))
    np.testing.assert_allclose(semimetric(one, two), gamma)
    np.testing.assert_allclose(exact_divergence(3.0, one, two, noise), renyi_bound(3.0, gamma, noise, 1), rtol=0.02)


def test_noise_of_that_scale_is_private_and_half_of_it_is_not():
    gamma, epsilon, delta = 0.05, 1.0, 1e-3
    eta = noise_scale(gamma, 1, epsilon, delta)

    def leak(noise, shrink):
        """Mean of 1 - e^(eps - loss) above 0: the least delta for one component, D = 1."""
        rng = np.random.default_rng(0)
        p = math.exp(-gamma * shrink / math.sqrt(2))
        shift = math.sqrt(max(1 - shrink**2, 0)) * gamma * p
        loss = 0.0
        for scale, mean, moved in ((noise / math.sqrt(2), 1.0, p), (noise, 0.0, shift)):
            z = rng.normal(size=100_000)
            loss = loss + math.log(p) - z**2 / 2 + ((mean - moved + scale * z) / (p * scale)) ** 2 / 2
        return np.maximum(-np.expm1(epsilon - loss), 0).mean()

    assert max(leak(eta, share) for share in (0.0, 0.5, 1.0)) < delta
    assert max(leak(eta / 2, share) for share in (0.0, 0.5, 1.0)) > delta


def test_noise_falls_with_epsilon_and_has_a_largest_radius():
    scales = [noise_scale(0.02, 2, epsilon, 1e-6) for epsilon in (2.0, 8.0, 50.0, math.inf)]
    assert scales == sorted(scales, reverse=True) and scales[-1] == 0
    np.testing.assert_allclose(noise_scale(1e-5, 2, 4.0, 1e-6) * 1e3, noise_scale(1e-2, 2, 4.0, 1e-6), rtol=0.2)
    edge = largest_radius(2, 4.0, 1e-6)
    assert math.isfinite(noise_scale(spread(0.999 * edge), 2, 4.0, 1e-6))
    assert math.isinf(noise_scale(spread(1.01 * edge), 2, 4.0, 1e-6)) and math.isinf(noise_scale(50.0, 1, 4.0, 1e-6))


def test_neighbours_agree_with_a_loop_and_one_block_moves_their_share_by_two_over_t():
    rng = np.random.default_rng(0)
    centre, T, moves = draw(rng, 2, 2), 9, []
    candidates = [draw(rng, 2, 2, centre, 0.5) for _ in range(T - 1)] + [None]
    close = neighbours(candidates, 0.8)
    for i, j in itertools.product(range(T), repeat=2):
        near = i == j or (candidates[i] is not None and candidates[j] is not None
                          and semimetric(candidates[i], candidates[j]) <= 0.8)
        assert close[i, j] == near
    assert 0.3 < close.mean() < 0.9
    for i in range(T):
        for changed in (None, draw(rng, 2, 2), centre):
            moves.append(abs(neighbours([*candidates[:i], changed, *candidates[i + 1:]], 0.8).mean() - close.mean()))
    assert 1 / T < max(moves) <= 2 / T
    assert neighbours([None] * 5, 1.0).mean() == 0.2


def test_the_chance_to_release_differs_by_no_more_than_the_test_may_tell():
    epsilon, delta, T = 1.5, 1e-2, 60
    z = np.sort([truncated_laplace(u, 2 / T, epsilon, delta) for u in (np.arange(4000) + 0.5) / 4000])
    needed = 0.8 + reach(2 / T, epsilon, delta)
    chances = {q: np.mean(q + z >= needed) for q in np.linspace(0.7, 1, 91)}
    assert chances[0.7] == 0 and chances[1.0] > 0.9
    for (q, here), (other, there) in itertools.product(chances.items(), repeat=2):
        if abs(q - other) <= 2 / T + 1e-9:
            assert here <= math.exp(epsilon) * there + delta + 1e-3
            assert 1 - here <= math.exp(epsilon) * (1 - there) + delta + 1e-3


def rows(n=600, D=2, seed=0):
    return np.random.default_rng(seed).normal(size=(n, D)) @ np.diag(np.arange(1.0, D + 1)) + 3


def private(**options):
    return PrivateGaussianMixture(**{"estimator": Moments(), "n_components": 1, "n_blocks": 12, "epsilon": math.inf,
                                     "random_state": 0, **options})


@pytest.mark.parametrize("value", [1e9, 1e200, 0.0])
def test_a_changed_row_reaches_one_block_and_no_error_tells_of_it(value):
    x = rows()
    y = x.copy()
    y[17] = value
    model = private(estimator=Moments(limit=1e100))
    here, there = model.fit(x).agreement_, private(estimator=Moments(limit=1e100)).fit(y)
    assert there.released_ and abs(here - there.agreement_) <= 2 / 12
    found = [parameters(m.weights_, m.means_, m.covariances_) for m in (model, there)]
    assert semimetric(*found) <= spread(model.radius_)


def test_without_noise_the_first_populous_candidate_is_released():
    x = rows()
    blocks = np.array_split(np.random.RandomState(0).permutation(600), 12)
    x[blocks[0]] += 1e4
    model = private(agreement=0.61, radius=2.0).fit(x)
    np.testing.assert_allclose(model.means_[0], x[blocks[1]].mean(0), rtol=1e-12)
    np.testing.assert_allclose(model.covariances_[0], np.cov(x[blocks[1]].T, bias=True), rtol=1e-6)
    assert model.noise_ == 0 and model.needed_ == 0.61
    np.testing.assert_allclose(model.agreement_, (11**2 + 1) / 12**2)


def test_blocks_that_disagree_release_nothing():
    x = rows()
    model = private().fit(x)
    assert model.released_ and model.as_density().means_KD.shape == (1, 2)
    model.set_params(estimator=Scatter()).fit(x)
    assert model.released_ is False and not hasattr(model, "means_") and model.agreement_ == pytest.approx(1 / 12)
    with pytest.raises(MixwellError, match="there is no released mixture; expected a fit"):
        model.as_density()
    with pytest.raises(MixwellError, match=r"nothing is released: the blocks agree by 0.083, expected at least 0.800"):
        model.set_params(raise_on_failure=True).fit(x)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 1e6), (1e-3, -7.0), (50.0, 1e6)])
def test_the_release_moves_with_the_data(scale, shift):
    options = {"epsilon": 60.0, "delta": 1e-3, "n_blocks": None, "radius": 0.3}
    here, there = private(**options).fit(rows(6000)), private(**options).fit(rows(6000) * scale + shift)
    assert here.released_ and there.released_ and 0.05 < here.noise_ == there.noise_ < 1
    np.testing.assert_allclose((there.means_ - shift) / scale, here.means_, atol=1e-5)
    np.testing.assert_allclose(there.covariances_ / scale**2, here.covariances_, rtol=1e-5)


def test_budget_blocks_and_radius():
    model = private(epsilon=40.0, delta=1e-4, test_share=0.25, n_blocks=None, radius=0.1).fit(rows(3000))
    spent = model.privacy_
    assert spent["test"] == {"epsilon": 10.0, "delta": 2.5e-5} and spent["total"] == {"epsilon": 40.0, "delta": 1e-4}
    assert spent["release"]["epsilon"] == 30.0 and spent["release"]["delta"] == pytest.approx(7.5e-5)
    T = model.n_blocks_
    assert reach(2 / T, 10.0, 2.5e-5) <= 0.1 < reach(2 / (T - 1), 10.0, 2.5e-5)
    assert model.needed_ == pytest.approx(0.8 + reach(2 / T, 10.0, 2.5e-5))
    assert model.noise_ == noise_scale(spread(0.1), 2, 30.0, spent["release"]["delta"])
    rng = np.random.RandomState(0)
    rng.permutation(3000), rng.randint(2**31 - 1, size=T)
    pairs = (model.agreement_ - truncated_laplace(rng.uniform(), 2 / T, 10.0, 2.5e-5)) * T**2
    np.testing.assert_allclose(pairs, round(pairs), atol=1e-9)
    blocks = [private()._candidate(rows(100, seed=seed), 0) for seed in range(30)]
    assert neighbours(blocks, private(n_blocks=30).fit(rows(3000)).radius_).mean() > 0.97


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_any_estimator_with_these_attributes_serves(kind):
    mixture = find("density.mixtures.gaussian").load()(2, covariance_type=kind, max_iter=3, tol=1.0)
    x = np.r_[rows(30), rows(30) + 20]
    found = private(estimator=mixture, n_components=2)._candidate(x, 3)
    mixture.set_params(random_state=3).fit(x)
    wanted = find("density.values.gaussian_mixture").load().from_estimator(mixture)
    np.testing.assert_allclose(found.covariances, wanted.covariances_KDD)
    np.testing.assert_allclose(found.means, wanted.means_KD)
    assert private(estimator=Moments(), n_components=2)._candidate(x, 0) is None


def test_same_state_gives_the_same_bits_and_inputs_stay():
    x, estimator = rows(3000), Moments()
    kept = x.copy()
    options = {"estimator": estimator, "epsilon": 200.0, "delta": 1e-2, "radius": 0.5}
    first, again = private(**options).fit(x), private(**options).fit(x)
    assert first.released_ and (first.means_ == again.means_).all() and first.agreement_ == again.agreement_
    assert (x == kept).all() and not hasattr(estimator, "means_")
    other = private(**options).set_params(random_state=1).fit(x)
    assert (other.means_ != first.means_).all()
    np.testing.assert_allclose(private(**options).fit(x.astype(np.float32)).means_, first.means_, rtol=1e-5)


def test_refuses():
    x = rows(100)
    for wrong, words in (({"epsilon": 0}, "epsilon 0"), ({"delta": 1.0}, "delta 1.0"),
                         ({"test_share": 0}, "test_share 0"), ({"n_components": 0}, "n_components is 0"),
                         ({"agreement": 0.6}, "agreement is 0.6"),
                         ({"n_blocks": 4}, "n_blocks is 4; expected at least 5"), ({"radius": 0.0}, "radius is 0.0"),
                         ({"estimator": find("density.mixtures.gaussian").load()(3)}, "n_components is 1, the .* 3")):
        with pytest.raises(ValueError, match=words):
            private(**wrong).fit(x)
    with pytest.raises(MixwellError, match="X has 100 rows; expected at least 120 for 60 blocks"):
        private(n_blocks=60).fit(x)
    with pytest.raises(MixwellError, match=r"n_blocks is 12, too few .* at least 536"):
        private(epsilon=1.0).fit(x)
    with pytest.raises(MixwellError, match=r"radius is 0.2; no noise hides that .* expected below 0.0\d+: pass"):
        private(epsilon=4.0, n_blocks=None, radius=0.2).fit(rows(1000))
    with pytest.raises(MixwellError, match=r"expected below 0.0\d+: that takes [\d.e+]+ rows"):
        private(epsilon=4.0, n_blocks=None).fit(rows(1000))
    with pytest.raises(ValueError, match=r"got weights \(1,\), means \(2, 1\)"):
        parameters([1.0], np.zeros((2, 1)), np.ones((2, 1, 1)))
    with pytest.raises(ValueError, match="expected weights of at least 0"):
        parameters([-1.0], np.zeros((1, 1)), np.ones((1, 1, 1)))
    with pytest.raises(ValueError, match=r"finite and at most 1e\+70"):  # squares of it would overflow
        parameters([1.0], np.full((1, 1), 1e80), np.ones((1, 1, 1)))


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    model = made["estimator"].fit(made["X"])
    assert model.released_
    np.testing.assert_allclose(np.sort(model.means_[:, 0]) - 1e6, [0, 20], atol=1.0)
    np.testing.assert_allclose(model.weights_, 0.5, atol=0.15)
