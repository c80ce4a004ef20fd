"""The mixture over columns of different kinds: against a dumb loop, against its parts, with missing values."""

import copy
import math
import pickle

import numpy as np
import pytest

from mixwell.density import BayesianGaussianMixture, CategoricalMixture, GaussianMixture, PoissonMixture
from mixwell.density.mixtures.product import Block, ProductMixture


def planted(rows=240, holes=0.0, seed=0):
    """Two groups seen in two numbers, a count and a category with three values; and the groups."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, rows)
    x_ND = np.column_stack([rng.normal(3.0 * group, 1.0), rng.normal(-2.0 * group, 0.5),
                            rng.poisson(np.where(group, 9.0, 2.0)), (rng.random(rows) < 0.8).astype(int) * (1 + group)])
    x_ND[rng.random(x_ND.shape) < holes] = np.nan
    return x_ND.astype(float), group


def blocks(kind="full"):
    return [Block("numeric", GaussianMixture(covariance_type=kind), (0, 1)), Block("count", PoissonMixture(), (2,)),
            Block("category", CategoricalMixture(alpha=0.5), (3,), (), (3,))]


def log_density(model, x_D):
    """Log density of one row by the book, over what is there."""
    normal, counts, categories = (b.estimator for b in model.blocks_)
    total = 0.0
    for k, weight in enumerate(model.weights_):
        density = weight
        seen = [d for d in (0, 1) if not math.isnan(x_D[d])]
        if seen:
            diff = x_D[seen] - normal.means_[k][seen]
            covariance = normal.covariances_[k][np.ix_(seen, seen)]
            density *= math.exp(-0.5 * diff @ np.linalg.solve(covariance, diff)) / math.sqrt(
                (2 * math.pi) ** len(seen) * np.linalg.det(covariance))
        if not math.isnan(x_D[2]):
            rate = counts.rates_[k, 0]
            density *= math.exp(-rate) * rate ** x_D[2] / math.factorial(int(x_D[2]))
        if not math.isnan(x_D[3]):
            density *= categories.probabilities_[0][k, int(x_D[3])]
        total += density
    return math.log(total)


@pytest.mark.parametrize("holes", [0.0, 0.2])
def test_agrees_with_the_equation_row_by_row(holes):
    x_ND, group = planted(holes=holes)
    model = ProductMixture(2, blocks=blocks(), n_init=2, random_state=0).fit(x_ND)
    expected = [log_density(model, x_D) for x_D in x_ND[:60]]
    np.testing.assert_allclose(model.score_samples(x_ND[:60]), expected, rtol=1e-8)
    agree = (model.predict(x_ND) == group).mean()
    assert max(agree, 1 - agree) > (0.98 if holes == 0 else 0.9)


@pytest.mark.parametrize("holes", [0.0, 0.2])
def test_em_climbs_to_a_point_that_em_leaves_in_place(holes):
    x_ND, _ = planted(holes=holes)
    model = ProductMixture(2, blocks=blocks(), tol=1e-9, max_iter=500, random_state=0).fit(x_ND)
    assert model.converged_ and (np.diff(model.lower_bounds_) > -1e-7).all()
    resp_NK = model.predict_proba(x_ND)
    np.testing.assert_allclose(model.weights_, resp_NK.mean(0), atol=1e-4)
    seen = ~np.isnan(x_ND[:, 2])
    rates_K = resp_NK[seen].T @ x_ND[seen, 2] / resp_NK[seen].sum(0)
    np.testing.assert_allclose(model.blocks_[1].estimator.rates_[:, 0], rates_K, rtol=1e-3)
    codes_CK = np.stack([resp_NK[x_ND[:, 3] == c].sum(0) + 0.5 for c in range(3)])
    expected_KC = (codes_CK / codes_CK.sum(0)).T
    np.testing.assert_allclose(model.blocks_[2].estimator.probabilities_[0], expected_KC, atol=1e-3)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_numbers_alone_are_the_gaussian_mixture(kind):
    x_ND = planted()[0][:, :2]
    alone = GaussianMixture(2, covariance_type=kind, tol=1e-9, max_iter=500, random_state=0).fit(x_ND)
    product = ProductMixture(2, blocks=[Block("numeric", GaussianMixture(covariance_type=kind), (0, 1))], tol=1e-9,
                             max_iter=500, random_state=0).fit(x_ND)
    assert product.score(x_ND) == pytest.approx(alone.score(x_ND), abs=1e-6)
    assert product.bic(x_ND) == pytest.approx(alone.bic(x_ND), abs=1e-3)
    np.testing.assert_allclose(np.sort(product.weights_), np.sort(alone.weights_), atol=1e-3)
    assert (np.diff(product.weights_) <= 0).all()
    np.testing.assert_array_equal(product.blocks_[0].estimator.predict(x_ND), product.predict(x_ND))


def test_parameters_are_counted_once_for_all_blocks():
    model = ProductMixture(2, blocks=blocks(), random_state=0).fit(planted()[0])
    assert model._n_parameters() == 1 + 2 * (2 + 3) + 2 * 1 + 2 * 2


def test_the_floor_keeps_a_component_from_one_value():
    x_N1 = np.concatenate([np.zeros(40), np.random.default_rng(0).normal(9, 1, 60)])[:, None]
    block = Block("numeric", GaussianMixture(covariance_type="diag"), (0,), (0.01,))
    model = ProductMixture(2, blocks=[block], random_state=0).fit(x_N1)
    assert model.blocks_[0].estimator.covariances_.min() == pytest.approx(0.01, rel=1e-6)


def test_starts_see_every_column_at_one_spread():
    x_ND, _ = planted()
    model = ProductMixture(2, blocks=blocks(), random_state=0).fit(x_ND)
    points = model._start_points(x_ND * [100.0, 0.01, 1.0, 1.0])
    np.testing.assert_allclose(points[:, :3].std(0), 1)
    np.testing.assert_array_equal(points[:, 3:], np.eye(3)[x_ND[:, 3].astype(int)])


def test_samples_have_the_components_moments():
    model = ProductMixture(2, blocks=blocks(), random_state=0).fit(planted()[0])
    x_ND, labels_N = model.sample(4000)
    for k in range(2):
        own = x_ND[labels_N == k]
        np.testing.assert_allclose(own[:, :2].mean(0), model.blocks_[0].estimator.means_[k], atol=0.15)
        assert own[:, 2].mean() == pytest.approx(model.blocks_[1].estimator.rates_[k, 0], rel=0.1)
        shares = np.bincount(own[:, 3].astype(int), minlength=3) / len(own)
        np.testing.assert_allclose(shares, model.blocks_[2].estimator.probabilities_[0][k], atol=0.05)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_go_on_learning(again):
    x_ND, _ = planted()
    model = ProductMixture(2, blocks=blocks(), random_state=0).partial_fit(x_ND[:120])
    other = again(model).partial_fit(x_ND[120:])
    np.testing.assert_array_equal(other.score_samples(x_ND), model.partial_fit(x_ND[120:]).score_samples(x_ND))


@pytest.mark.parametrize("holes", [0.0, 0.2])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_batch_of_all_rows_makes_a_step_of_em(holes):
    x_ND, _ = planted(holes=holes)
    whole = ProductMixture(2, blocks=blocks(), max_iter=1, random_state=0).fit(x_ND)
    online = ProductMixture(2, blocks=blocks(), max_iter=1, random_state=0, batch_size=len(x_ND)).fit(x_ND)
    np.testing.assert_allclose(online.score_samples(x_ND), whole.score_samples(x_ND), rtol=1e-8)


def test_a_warm_start_goes_on_where_the_last_fit_stopped():
    x_ND = planted()[0]
    short = ProductMixture(n_components=2, blocks=blocks(), max_iter=3, tol=0.0, warm_start=True, random_state=0)
    once = short.fit(x_ND).score_samples(x_ND)
    twice = short.fit(x_ND).score_samples(x_ND)
    whole = ProductMixture(2, blocks=blocks(), max_iter=6, tol=0.0, random_state=0).fit(x_ND)
    np.testing.assert_allclose(twice, whole.score_samples(x_ND), rtol=1e-9)
    assert np.abs(twice - once).max() > 1e-6


@pytest.mark.parametrize(("quick", "slow"), [({"learning_decay": 0.6}, {"learning_decay": 1.0}),
                                             ({"learning_offset": 2.0}, {"learning_offset": 50.0})])
def test_learning_rates_say_how_much_a_batch_counts(quick, slow):
    x_ND = planted()[0]
    moved = []
    for options in (quick, slow):
        model = ProductMixture(2, blocks=blocks(), random_state=0, **options).partial_fit(x_ND[:120])
        before = model.score_samples(x_ND)
        after = model.partial_fit(x_ND[120:]).score_samples(x_ND)
        moved.append(np.abs(after - before).mean())
    assert moved[0] > 1.5 * moved[1] > 0


def test_refusals():
    x_ND, _ = planted()
    with pytest.raises(ValueError, match=r"blocks name the columns \[2, 3\]; expected each of 0 to 3 once"):
        ProductMixture(2, blocks=blocks()[1:]).fit(x_ND)
    with pytest.raises(ValueError, match="a block of kind 'category' with 0 sizes for 1 columns"):
        ProductMixture(2, blocks=[*blocks()[:2], Block("category", CategoricalMixture(), (3,))]).fit(x_ND)
    with pytest.raises(ValueError, match="a block's estimator is BayesianGaussianMixture"):
        ProductMixture(2, blocks=[Block("numeric", BayesianGaussianMixture(), (0, 1)), *blocks()[1:]]).fit(x_ND)
    x_ND[5, 3] = 3
    with pytest.raises(ValueError, match="row 5, column 3 is 3; expected a code from 0 to 2"):
        ProductMixture(2, blocks=blocks()).fit(x_ND)
    x_ND[4, 2] = -1
    with pytest.raises(ValueError, match="row 4, column 2 is -1; expected a count"):
        ProductMixture(2, blocks=blocks()).fit(x_ND)
    with pytest.raises(ValueError, match="'n_components' parameter of ProductMixture must be an int"):
        ProductMixture(0).fit(x_ND)
