"""The bivariate law, its optimum, and entropies."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.data.mixing import bivariate_law
from mixwell.data.runs import MixingRuns


def fresh(seed=0):
    return np.random.default_rng(seed)


def test_the_bivariate_law_finds_its_parameters_and_refuses_its_pole():
    runs = bivariate_law.example(fresh())["runs"]
    law = bivariate_law.BivariateLaw()
    for target, (alpha, floor) in enumerate([(0.05, 1.0), (0.1, 1.5), (0.2, 2.0)]):
        found = law.solve(runs, target, fresh())
        assert found.theta_P == pytest.approx([alpha, np.log(floor), np.log(20), 0.5], rel=1e-3)
    loose = bivariate_law.BivariateLaw(bivariate_law.Config(delta=0.1, starts=2)).solve(runs, 0, fresh())
    assert loose.theta_P[0] == pytest.approx(0.05, rel=1e-2)
    fitted = law.fit(runs)
    with pytest.raises(MixwellError, match="give those at which"):
        fitted.predict(runs.weights_ND)
    with pytest.raises(MixwellError, match="weight of 'a' is 0 in a run"):
        fitted.predict([[0.0, 0.5, 0.5]], np.array([100.0]))
    alone = MixingRuns(runs.domains, ("z",), runs.weights_ND, runs.losses_NM[:, :1])
    with pytest.raises(MixwellError, match="target 'z' is no domain"):
        law.fit(alone)
    late = runs.rows(np.flatnonzero(runs.steps_N == 3000.0))
    plain = MixingRuns(late.domains, late.targets, late.weights_ND, late.losses_NM)
    assert law.fit(plain).predict(plain.weights_ND) == pytest.approx(plain.losses_NM, rel=1e-4)


def test_the_bivariate_optimum_is_that_of_brute_force():
    alpha, height, weight = np.array([0.05, 0.1, 0.3]), np.array([2.0, 1.5, 1.0]), np.array([1.0, 2.0, 1.0])
    found = bivariate_law.optimum(alpha, height, weight)

    def loss(r):
        return (weight * height * r ** -alpha).sum(-1)

    others = fresh().dirichlet(np.ones(3), 200_000)
    assert found.sum() == pytest.approx(1) and loss(found) <= loss(others).min()
    slope = weight * alpha * height * found ** (-alpha - 1)
    assert slope == pytest.approx(np.full(3, slope[0]))
    assert bivariate_law.optimum(np.full(2, 0.1), np.ones(2), np.ones(2)) == pytest.approx([0.5, 0.5])


def test_entropy_weights_follow_what_the_next_token_holds():
    generator = fresh()
    coin = generator.integers(2, size=4000)
    dice = generator.integers(4, size=4000)
    turns = np.arange(4000) % 4
    found = bivariate_law.entropy_weights([coin, dice, turns], 4000)
    assert found == pytest.approx([1 / 3, 2 / 3, 0.0], abs=0.01)
    assert bivariate_law.conditional_entropy(coin, 4000) == pytest.approx(np.log(2), abs=1e-3)
    with pytest.raises(MixwellError, match="a domain has 10 tokens; 20"):
        bivariate_law.entropy_weights([coin[:10]], 20)
    with pytest.raises(MixwellError, match="entropies say nothing"):
        bivariate_law.entropy_weights([turns, turns], 100)
