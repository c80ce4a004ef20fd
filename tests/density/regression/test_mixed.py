"""Random effects against a loop over the nodes, the model without them as their limit, and what groups share."""

import math

import numpy as np
import pytest
import torch

from mixwell.density.regression.mixed import (
    Grid,
    Groups,
    MixedMixtureOfExperts,
    _first_nodes,
    example,
    integrate,
)
from mixwell.density.regression.polynomial import PolynomialExperts
from tests.density.regression._loops import dot, normal, softmax

RNG = np.random.default_rng(6)
GROUPS = np.repeat(np.arange(14), 6)
X = RNG.normal(size=(84, 1))
U = RNG.normal(size=14)[GROUPS]
Y = np.abs(X[:, 0]) + U * (1 + 0.5 * X[:, 0]) + 0.1 * RNG.normal(size=84)
INNER = np.column_stack([GROUPS // 2, GROUPS])


def loop(model, groups, levels, effects="both", slope=True):
    """Log-likelihood of outer groups by nested loops over groups, nodes, rows and experts."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    z = ((X - model.shift_) / model.scale_)[:, 0]

    def row(n, values):
        h = [1.0, z[n]]
        gate = h + (list(values) if effects in ("both", "gate") else [])
        random = [v * f for v in values for f in (h if slope else h[:1])]
        design = h + (random if effects in ("both", "experts") else [])
        gates = softmax([dot(w, gate) for w in model.gate_coef_])
        return sum(g * normal(Y[n] - dot(b[:, 0], design), s[0, 0])
                   for g, b, s in zip(gates, model.coef_, model.covariances_))

    result = []
    for outer in np.unique(groups[:, 0]):
        total = 0.0
        for u, w in zip(nodes, weights):
            product = w
            if levels == 1:
                product *= math.prod(row(n, [u]) for n in np.flatnonzero(groups[:, 0] == outer))
            else:
                for inner in np.unique(groups[groups[:, 0] == outer, 1]):
                    rows = np.flatnonzero(groups[:, 1] == inner)
                    product *= sum(q * math.prod(row(n, [u, v]) for n in rows) for v, q in zip(nodes, weights))
            total += product
        result.append(math.log(total))
    return result


@pytest.mark.parametrize("effects, slope", [("both", True), ("both", False), ("gate", True), ("experts", True),
                                            ("none", True)])
def test_likelihood_agrees_with_a_loop(effects, slope):
    options = {"effects": effects, "random_slope": slope, "n_nodes": 3, "random_state": 0}
    model = MixedMixtureOfExperts(**options, max_iter=15).fit(X, Y, GROUPS)
    np.testing.assert_allclose(model.log_likelihood(X, Y, GROUPS),
                               loop(model, GROUPS[:, None], 1, effects, slope), rtol=1e-9)
    assert np.diff(model.lower_bounds_).min() >= -1e-10


def test_nested_likelihood_agrees_with_a_loop():
    model = MixedMixtureOfExperts(n_nodes=3, random_state=0, max_iter=10).fit(X, Y, INNER)
    np.testing.assert_allclose(model.log_likelihood(X, Y, INNER), loop(model, INNER, 2), rtol=1e-9)
    assert np.diff(model.lower_bounds_).min() >= -1e-10 and model.gate_coef_.shape == (2, 4)


def test_groups_begin_near_the_nodes_of_their_means():
    grid, known = Grid.of(3, 2), Groups.of(INNER)
    found = _first_nodes(Y, known, grid)
    np.testing.assert_allclose(found.sum((1, 2)), 1)
    outer, inner = found.sum(2) @ grid.effects_ABL[:, 0, 0], found.sum(1) @ grid.effects_ABL[0, :, 1]
    means = np.array([Y[INNER[:, 0] == g].mean() for g in INNER[:, 0]])
    assert np.corrcoef(outer, means)[0, 1] > 0.8
    within = np.array([Y[INNER[:, 1] == g].mean() for g in INNER[:, 1]]) - means
    assert np.corrcoef(inner, within)[0, 1] > 0.8


def test_quadrature_of_a_normal_intercept_is_the_linear_mixed_model():
    grid, known = Grid.of(25, 1), Groups.of(GROUPS)
    tau, sigma = 0.4, 0.9
    residual = Y[:, None] - tau * grid.effects_ABL[:, 0, 0]
    log_NAB = (-0.5 * (residual / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi)))[:, :, None]
    found, outer, _ = integrate(log_NAB, known, grid)
    covariance = sigma**2 * np.eye(6) + tau**2
    for g in range(14):
        y = Y[g == GROUPS]
        exact = -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * np.pi * covariance)[1])
        np.testing.assert_allclose(found[g], exact, atol=1e-4)
        posterior = tau * y.sum() / (sigma**2 + 6 * tau**2)
        np.testing.assert_allclose(outer[g] @ grid.effects_ABL[:, 0, 0], posterior, atol=1e-3)


def test_without_effects_it_is_the_mixture_of_experts():
    model = MixedMixtureOfExperts(effects="none", n_nodes=1, random_state=0, ridge=1e-2, tol=1e-9).fit(X, Y, GROUPS)
    plain = PolynomialExperts(ridge=1e-2, random_state=0, tol=1e-9).fit(X, Y)
    np.testing.assert_allclose(model.log_likelihood(X, Y, GROUPS).sum(), plain.log_likelihood(X, Y).sum(), rtol=1e-5)
    np.testing.assert_allclose(model.predict(X), plain.predict(X), atol=1e-3)


def test_effects_explain_what_groups_share():
    model = MixedMixtureOfExperts(n_nodes=7, random_state=0, tol=1e-3).fit(X, Y, GROUPS)
    plain = MixedMixtureOfExperts(effects="none", n_nodes=1, random_state=0, tol=1e-3).fit(X, Y, GROUPS)
    assert model.log_likelihood(X, Y, GROUPS).sum() > plain.log_likelihood(X, Y, GROUPS).sum() + 20
    assert model.score(X, Y, GROUPS) > 0.8 > 0.5 > plain.score(X, Y, GROUPS)
    np.testing.assert_allclose(model.predict(X, np.full(84, 99)), model.predict(X))  # a new group: the prior


def test_a_new_inner_group_of_a_known_outer_one_uses_what_is_known():
    model = MixedMixtureOfExperts(n_nodes=3, random_state=0, max_iter=10).fit(X, Y, INNER)
    strange = np.column_stack([INNER[:, 0], np.full(84, -1)])
    assert np.abs(model.predict(X, strange) - model.predict(X)).max() > 1e-3
    assert np.abs(model.predict(X, strange) - model.predict(X, INNER)).max() > 1e-3


@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_starts(init):
    model = MixedMixtureOfExperts(n_nodes=5, init=init, n_init=2, random_state=0, max_iter=10).fit(X, Y, GROUPS)
    assert model.n_iter_ <= 10 and model.lower_bounds_[-1] > model.lower_bounds_[0]


def test_refuses():
    with pytest.raises(ValueError, match="expected 'both', 'gate', 'experts' or 'none'"):
        MixedMixtureOfExperts(effects="all").fit(X, Y, GROUPS)
    with pytest.raises(ValueError, match="groups has 3 entries for 84 rows"):
        MixedMixtureOfExperts().fit(X, Y, GROUPS[:3])
    with pytest.raises(ValueError, match="3 columns; expected one, or outer and inner"):
        MixedMixtureOfExperts().fit(X, Y, np.zeros((84, 3)))
    with pytest.raises(ValueError, match="2 levels; the model was fitted with 1"):
        MixedMixtureOfExperts(n_nodes=2, max_iter=2).fit(X, Y, GROUPS).log_likelihood(X, Y, INNER)


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    estimator = made.pop("estimator")
    assert estimator.fit(**made).score(made["X"], made["y"], made["groups"]) > 0.8


def test_no_variance_falls_below_its_floor():
    inputs = example(torch.Generator().manual_seed(0))
    model = inputs.pop("estimator").set_params(reg_covar=2.0, max_iter=3).fit(**inputs)
    np.testing.assert_allclose(model.covariances_, 2 * np.var(inputs["y"]), rtol=1e-6)


def test_one_expert_leaves_the_gates_nothing_to_decide():
    inputs = example(torch.Generator().manual_seed(0))
    model = inputs.pop("estimator").set_params(n_experts=1, max_iter=3).fit(**inputs)
    assert len(model.covariances_) == 1 and not np.any(model.gate_coef_)
