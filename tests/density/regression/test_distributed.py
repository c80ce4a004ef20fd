"""The reduction against a triple loop, its monotone cost, and that shards together come near the whole."""

import math

import numpy as np
import pytest
import torch

from mixwell.density.regression.distributed import (
    DistributedMixtureOfExperts,
    Experts,
    Reduction,
    barycentres,
    divergences,
    example,
    transport,
)
from mixwell.density.regression.polynomial import PolynomialExperts

RNG = np.random.default_rng(5)
X = RNG.uniform(-1, 1, (400, 1))
Y = np.where(X[:, 0] > 0, 2 * X[:, 0], -X[:, 0]) + 0.1 * RNG.normal(size=400)
S = np.column_stack([np.ones(7), RNG.normal(size=(7, 2))])
COEF, VARIANCE = RNG.normal(size=(6, 3)), RNG.uniform(0.5, 1.5, 6)
WEIGHT = RNG.dirichlet(np.ones(6), 7)
START = Experts(COEF[:2] + 0.1, VARIANCE[:2] + 0.2)


def loop(coef, variance):
    """Transport's mean cost, and the plan, with KL of normals written out."""
    plan, total = np.zeros((7, 6, 2)), 0.0
    for s, row in enumerate(S):
        for i in range(6):
            costs = []
            for k in range(2):
                gap = sum(a * b for a, b in zip(row, COEF[i] - coef[k]))
                costs.append(0.5 * (math.log(variance[k] / VARIANCE[i]) + (VARIANCE[i] + gap**2) / variance[k] - 1))
            best = costs.index(min(costs))
            plan[s, i, best] = WEIGHT[s, i]
            total += WEIGHT[s, i] * min(costs) / 7
    return plan, total


def test_transport_agrees_with_a_triple_loop():
    plan, cost = transport(WEIGHT, divergences(S @ COEF.T, VARIANCE, S @ START[0].T, START[1]))
    expected_plan, expected = loop(*START)
    np.testing.assert_allclose(plan, expected_plan)
    np.testing.assert_allclose(cost, expected, rtol=1e-12)


def test_barycentres_minimise_the_cost_of_the_plan():
    plan, _ = loop(*START)
    coef, variance = barycentres(S, plan, COEF, VARIANCE, START)

    def cost(coef, variance):
        return float((plan * divergences(S @ COEF.T, VARIANCE, S @ coef.T, variance)).sum())

    for _ in range(20):
        moved = cost(coef + 0.01 * RNG.normal(size=coef.shape), variance * np.exp(0.01 * RNG.normal(size=2)))
        assert moved >= cost(coef, variance)
    empty = barycentres(S, plan * [1, 0], COEF, VARIANCE, START)
    np.testing.assert_array_equal(empty[0][1], START[0][1])


def test_the_cost_never_rises():
    run = Reduction(S, WEIGHT, Experts(COEF, VARIANCE)).run(START, 0.0, 30)
    costs = [-bound for bound in run.bounds]
    assert np.diff(costs).max() <= 1e-12 and costs[-1] < costs[0]
    np.testing.assert_allclose(costs[0], loop(*START)[1])


def test_copies_of_one_mixture_reduce_to_it_in_any_order():
    order = [0, 1, 1, 0]
    shares = np.tile([0.3, 0.2], (7, 2))
    reduction = Reduction(S, shares, Experts(COEF[order], VARIANCE[order]))
    run = reduction.run(START, 1e-12, 50)
    np.testing.assert_allclose(run.state.coef_KP, COEF[:2], atol=1e-8)
    np.testing.assert_allclose(run.state.variance_K, VARIANCE[:2], atol=1e-8)
    plan, cost = reduction.plan(run.state)
    np.testing.assert_allclose(plan.sum((1, 2)), 1)
    assert run.converged and -run.bounds[-1] < 1e-12 and cost == -run.bounds[-1]


def test_shards_together_come_near_the_whole():
    whole = PolynomialExperts(random_state=0).fit(X, Y)
    model = DistributedMixtureOfExperts(n_shards=4, support=200, random_state=0).fit(X, Y)
    worst_local = max(np.abs(m.predict((X - model.shift_) / model.scale_) - whole.predict(X)).max()
                      for m in model.local_)
    assert np.abs(model.predict(X) - whole.predict(X)).max() < min(0.1, worst_local)
    gap = whole.log_likelihood(X, Y).mean() - model.log_likelihood(X, Y).mean()
    assert gap < 0.05 and len(model.local_) == 4


def test_one_shard_is_the_local_fit():
    model = DistributedMixtureOfExperts(n_shards=1, support=400, random_state=0, ridge=0.0, tol=1e-9).fit(X, Y)
    local = model.local_[0]
    assert np.abs(model.predict(X) - local.predict((X - model.shift_) / model.scale_)).max() < 0.05


def test_options_move_what_they_say():
    few = DistributedMixtureOfExperts(support=30, reduce_init=1, reduce_iter=1, init="random", n_init=2,
                                      random_state=0, max_iter=20, tol=1e-3).fit(X, Y)
    assert len(few.transport_) == 1 and not few.converged_ and len(few.local_s_) == 4 and few.reduction_s_ > 0
    assert few.local_[0].get_params()["init"] == "random" and few.local_[0].get_params()["n_init"] == 2


def test_refuses():
    with pytest.raises(ValueError, match="too few for 4 shards of 3 experts"):
        DistributedMixtureOfExperts(n_experts=3).fit(X[:10], Y[:10])
    with pytest.raises(ValueError, match="support is 0"):
        DistributedMixtureOfExperts(support=0).fit(X, Y)


def test_example_runs():
    made = example(torch.Generator().manual_seed(0))
    assert made["estimator"].fit(made["X"], made["y"]).score(made["X"], made["y"]) > 0.9


def test_no_local_variance_falls_below_its_floor():
    inputs = example(torch.Generator().manual_seed(0))
    model = inputs.pop("estimator").set_params(reg_covar=2.0, max_iter=3).fit(**inputs)
    np.testing.assert_allclose(model.covariances_, 2 * np.var(inputs["y"]), rtol=0.1)
