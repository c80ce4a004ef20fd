"""Split and merge: the order of candidates in loops, moments kept, the number found, poor optima left."""

import numpy as np
import pytest
import scipy.stats as st
import torch

from mixwell.density import GaussianMixture, SplitMergeMixture
from mixwell.density.selection.split_merge import example, merge, merge_order, split, split_order
from tests.density.selection._tools import three_groups


def test_candidates_come_in_the_order_of_the_loops():
    x = three_groups(40)
    model = GaussianMixture(4, random_state=3).fit(x)
    r = model.predict_proba(x)
    overlap = {(i, j): r[:, i] @ r[:, j] / np.sqrt((r[:, i] @ r[:, i]) * (r[:, j] @ r[:, j]))
               for i in range(4) for j in range(i + 1, 4)}
    assert merge_order(r) == sorted(overlap, key=overlap.get, reverse=True)
    local = []
    for k in range(4):
        f = r[:, k] / r[:, k].sum()
        log_p = st.multivariate_normal(model.means_[k], model.covariances_[k]).logpdf(x)
        local.append(sum(a * (np.log(a) - b) for a, b in zip(f, log_p) if a > 0))
    assert split_order(r, model, x) == sorted(range(4), key=lambda k: -local[k])


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


@pytest.mark.parametrize("start", [1, 6])
def test_the_number_is_found(start):
    x = three_groups()
    model = SplitMergeMixture(start, random_state=0).fit(x)
    assert model.n_components_ == 3 and ("split" if start == 1 else "merge") in model.history_
    assert (np.diff(model.bics_) < 0).all()
    assert model.score(x) == pytest.approx(GaussianMixture(3, random_state=0).fit(x).score(x), abs=1e-3)
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1)
    assert len(model.score_samples(x)) == len(x) and len(np.unique(model.predict(x))) == 3


def test_swaps_leave_a_poor_optimum_and_keep_the_number():
    rng = np.random.default_rng(0)
    centres = np.array([[-6.0, 0.0], [-4.5, 1.5], [0.0, 4.0], [40.0, 0.0], [46.0, 0.0]])
    x = np.repeat(centres, 30, axis=0) + 0.6 * rng.normal(size=(150, 2))
    poor = GaussianMixture(5, random_state=0).fit(x)
    good = GaussianMixture(5, means_init=centres, random_state=0).fit(x)
    assert poor.score(x) < good.score(x) - 0.04
    model = SplitMergeMixture(5, moves="swap", random_state=0).fit(x)
    assert set(model.history_) == {"swap"} and model.n_components_ == 5
    assert model.score(x) > good.score(x) - 1e-3
    assert SplitMergeMixture(5, moves="swap", max_moves=1, random_state=0).fit(x).history_ == ["swap"]


def test_no_moves_are_the_plain_mixture():
    x = three_groups(30)
    model = SplitMergeMixture(n_components=2, max_moves=0, random_state=0).fit(x)
    assert model.history_ == [] and model.score(x) == GaussianMixture(2, random_state=0).fit(x).score(x)


def test_more_candidates_try_more_moves():
    x = three_groups(40)
    model = GaussianMixture(4, random_state=0).fit(x)
    names = {c: [name for name, _ in SplitMergeMixture(candidates=c)._proposals(model, x)] for c in (1, 3)}
    assert names[1] == ["split", "merge", "swap"]
    assert names[3].count("split") == names[3].count("merge") == 3
    swaps = [name for name, _ in SplitMergeMixture(candidates=3, moves="swap")._proposals(model, x)]
    assert set(swaps) == {"swap"} and len(swaps) == names[3].count("swap") == 6  # 3 pairs, 2 others each


def test_refusals_and_example():
    with pytest.raises(ValueError, match="The 'moves' parameter of SplitMergeMixture must be"):
        SplitMergeMixture(moves="jump").fit(three_groups())
    given = example(torch.Generator().manual_seed(0))
    assert given["estimator"].fit(given["X"]).n_components_ == 3
