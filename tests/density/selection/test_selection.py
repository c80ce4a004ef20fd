"""Number of components: every criterion finds three groups, and the moves leave poor optima."""

import numpy as np
import pytest
import torch

from mixwell.core.registry import find
from mixwell.density import ComponentSearch, GaussianMixture, SplitMergeMixture, slope_heuristic
from mixwell.density.selection.split_merge import merge, merge_order, split


def three_groups(n=80, d=2, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.array([[-6.0, 0.0], [0.0, 4.0], [6.0, -1.0]])[:, :d]
    return np.repeat(centres, n, axis=0) + rng.normal(size=(3 * n, d))


@pytest.mark.parametrize("criterion", ["bic", "icl", "cv", "slope"])
def test_criteria_find_three_groups(criterion):
    x = three_groups()
    search = ComponentSearch(GaussianMixture(random_state=0), range(1, 7), criterion=criterion, folds=3, random_state=0,
                             one_standard_error=criterion == "cv").fit(x)
    assert search.best_n_components_ == 3 == len(search.best_estimator_.weights_)
    assert len(np.unique(search.predict(x))) == 3 and search.score(x) == search.best_estimator_.score(x)
    assert sorted(search.scores_) == list(range(1, 7))


def test_aic_is_the_estimators_own_and_never_smaller_than_bic():
    x = three_groups()
    aic = ComponentSearch(GaussianMixture(random_state=0), [2, 3, 4], criterion="aic").fit(x)
    assert aic.scores_[3] == pytest.approx(GaussianMixture(3, random_state=0).fit(x).aic(x))
    bic = ComponentSearch(GaussianMixture(random_state=0), [2, 3, 4]).fit(x)
    assert aic.best_n_components_ >= bic.best_n_components_


def test_search_refusals():
    with pytest.raises(ValueError, match="criterion='x'; expected one of bic, aic, icl, cv, slope"):
        ComponentSearch(criterion="x").fit(three_groups())
    with pytest.raises(ValueError, match="n_components is empty"):
        ComponentSearch(n_components=[]).fit(three_groups())


def test_slope_is_read_off_the_large_models():
    k = np.arange(1, 16)
    d = 3.0 * k - 1
    noise = np.random.default_rng(0).normal(size=15) * 0.2
    chosen, slope, criterion = slope_heuristic(-500 + 200 * np.minimum(k, 4) + 0.8 * d + noise, d)
    assert k[chosen] == 4 and slope == pytest.approx(0.8, abs=0.05)
    assert criterion.argmin() == chosen
    with pytest.raises(ValueError, match="at least four"):
        slope_heuristic([1.0, 2.0], [1.0, 2.0])


@pytest.mark.parametrize("start", [1, 6])
def test_split_and_merge_find_the_number(start):
    x = three_groups()
    model = SplitMergeMixture(start, random_state=0).fit(x)
    assert model.n_components_ == 3 and ("split" if start == 1 else "merge") in model.history_
    assert (np.diff(model.bics_) < 0).all()
    assert model.score(x) == pytest.approx(GaussianMixture(3, random_state=0).fit(x).score(x), abs=1e-3)
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1)
    assert len(model.score_samples(x)) == len(x) and len(np.unique(model.predict(x))) == 3


def test_swaps_leave_a_poor_optimum():
    far = np.random.default_rng(1).normal(size=(60, 2)) + np.array([40.0, 0.0])
    x = np.vstack([three_groups(60), far])
    poor = next(m for seed in range(40)
                if (m := GaussianMixture(4, init_params="random_from_data", random_state=seed).fit(x)).score(x) < -4.35)
    seed = poor.random_state
    model = SplitMergeMixture(4, moves="swap", random_state=0, candidates=6)
    best = model.fit(x)
    assert best.n_components_ == 4
    assert seed >= 0 and best.score(x) > poor.score(x)
    assert SplitMergeMixture(2, max_moves=0, random_state=0).fit(x).history_ == []


def test_moves_keep_mean_and_covariance():
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(3, 2, 2))
    params = (np.array([0.2, 0.3, 0.5]), rng.normal(size=(3, 2)), roots @ roots.transpose(0, 2, 1) + np.eye(2))

    def moments(p):
        mean = p[0] @ p[1]
        return mean, np.einsum("k,kde->de", p[0], p[2] + (p[1] - mean)[:, :, None] * (p[1] - mean)[:, None])

    for moved in (split(params, 1), merge(params, 0, 2), merge(split(params, 0), 0, 1)):
        for a, b in zip(moments(moved), moments(params)):
            np.testing.assert_allclose(a, b, rtol=1e-9)
    assert merge_order(np.array([[0.5, 0.5, 0.0], [0.4, 0.6, 0.0], [0.0, 0.0, 1.0]]))[0] == (0, 1)


@pytest.mark.parametrize("name", ["components", "split_merge", "slope_heuristic"])
def test_examples_run(name):
    entry = find(f"density.selection.{name}")
    given = entry.module().example(torch.Generator().manual_seed(0))
    if name == "slope_heuristic":
        assert slope_heuristic(**given)[0] == 2
    else:
        given["estimator"].fit(given["X"])
        assert len(np.unique(given["estimator"].predict(given["X"]))) == 3
