"""Standard errors by the information matrix: closed forms, derivatives in loops, the bootstrap, what is refused."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit, logit

from mixwell.density import (
    CategoricalMixture,
    GaussianMixture,
    MixtureBootstrap,
    MixtureInformation,
    NegativeBinomialMixture,
    PoissonMixture,
    ProductMixture,
    StudentTMixture,
    VonMisesFisherMixture,
    ZeroInflatedPoissonMixture,
)
from mixwell.density.mixtures.product import Block
from mixwell.density.selection.information import standard_errors

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def groups(n=300, seed=0):
    rng = np.random.default_rng(seed)
    own = np.arange(n) % 3 > 0
    return np.column_stack([rng.normal(3.0 * own), rng.normal(-2.0 * own, 1 + own)])


def test_one_gaussian_has_its_closed_form():
    x = groups()[:, :1]
    n, variance = len(x), x.var()
    model = MixtureInformation(GaussianMixture(1, reg_covar=0.0), kind="hessian").fit(x)
    errors = model.standard_errors_
    assert errors["means_"][0, 0] == pytest.approx(np.sqrt(variance / n), rel=1e-5)
    assert errors["covariances_"][0, 0, 0] == pytest.approx(variance * np.sqrt(2 / n), rel=1e-4)
    low, high = model.intervals_["means_"][:, 0, 0]
    assert (low + high) / 2 == pytest.approx(x.mean())
    assert high - low == pytest.approx(2 * 1.959964 * errors["means_"][0, 0], rel=1e-6)


def test_scores_of_a_mixture_agree_with_derivatives_by_hand():
    """Two rates and a weight: s = d log(w f1 + (1 - w) f2), written out."""
    rng = np.random.default_rng(0)
    x = rng.poisson(np.where(np.arange(400) % 4 > 0, 2.0, 9.0))[:, None].astype(float)
    model = PoissonMixture(2, random_state=0, tol=1e-10, max_iter=2000).fit(x)
    big, small = model.weights_.argmax(), model.weights_.argmin()
    rows = []
    for value, in x:
        f = [stats.poisson.pmf(value, model.rates_[k, 0]) for k in range(2)]
        p = model.weights_ @ f
        slopes = [model.weights_[k] * f[k] * (value / model.rates_[k, 0] - 1) / p for k in range(2)]
        rows.append([(f[small] - f[big]) / p, *slopes])
    s = np.array(rows)
    expected = np.sqrt(np.diag(np.linalg.inv(s.T @ s)))
    found = standard_errors(model, x)
    np.testing.assert_allclose(found["weights_"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found["rates_"][:, 0], expected[1:], rtol=1e-5)
    doubled = standard_errors(model, x, sample_weight=np.full(len(x), 2.0))
    np.testing.assert_allclose(doubled["rates_"], found["rates_"] / np.sqrt(2), rtol=1e-6)
    repeated = standard_errors(model, np.repeat(x, 2, 0))
    np.testing.assert_allclose(doubled["rates_"], repeated["rates_"], rtol=1e-6)
    np.testing.assert_allclose(standard_errors(model, x, kind="hessian")["rates_"], found["rates_"], rtol=0.3)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_gaussians_are_as_sure_as_the_bootstrap_says(kind):
    x = groups()
    base = GaussianMixture(2, covariance_type=kind, random_state=0, tol=1e-6, max_iter=500)
    found = MixtureInformation(base, level=0.9).fit(x)
    drawn = MixtureBootstrap(base, 20, random_state=0).fit(x)
    for name in ("weights_", "means_", "covariances_"):
        assert found.standard_errors_[name].shape == getattr(found.estimator_, name).shape
        ratio = found.standard_errors_[name] / drawn.standard_errors_[name]
        assert 0.6 < np.exp(np.log(ratio).mean()) < 1.6, name
    assert found.score(x) == found.estimator_.score(x)
    np.testing.assert_array_equal(found.predict(x), found.estimator_.predict(x))


def test_categories_shares_on_the_edge_and_intervals_within_zero_and_one():
    rng = np.random.default_rng(0)
    own = np.arange(300) % 2
    x = np.column_stack([rng.integers(0, 2, 300) + own, rng.random(300) < 0.15 + 0.7 * own]).astype(float)
    model = MixtureInformation(CategoricalMixture(1), kind="hessian").fit(x)
    share = (x[:, 1] == 1).mean()
    error = model.standard_errors_["_flat_probabilities"][0]
    assert error[-1] == pytest.approx(np.sqrt(share * (1 - share) / 300), rel=1e-5)
    low, high = model.intervals_["_flat_probabilities"][:, 0, -1]
    step = 1.959964 * error[-1] / (share * (1 - share))
    np.testing.assert_allclose([low, high], expit([logit(share) - step, logit(share) + step]), rtol=1e-6)
    edge = CategoricalMixture(2, random_state=0, tol=1e-12, max_iter=3000).fit(x)
    flat = standard_errors(edge, x)["_flat_probabilities"]
    held = abs(edge._flat_probabilities - 0.5) > 0.5 - 1e-6
    assert held.any() and np.isnan(flat[held]).all() and np.isfinite(flat[~held]).all()


@pytest.mark.parametrize("family", [StudentTMixture, NegativeBinomialMixture, ZeroInflatedPoissonMixture])
def test_other_families_have_errors_that_shrink_with_the_rows(family):
    rng = np.random.default_rng(0)
    x = rng.standard_t(4, (800, 1)) if family is StudentTMixture else rng.negative_binomial(3, 0.4, (800, 1)) * 1.0
    model = family(1, random_state=0, tol=1e-9, max_iter=3000).fit(x)
    many = standard_errors(model, x, sample_weight=np.full(len(x), 4.0))
    for name, error in standard_errors(model, x).items():
        if name != "weights_":
            assert (error > 0).all()
            np.testing.assert_allclose(many[name], error / 2, rtol=1e-6)


def test_blocks_and_tensors():
    rng = np.random.default_rng(0)
    own = np.arange(200) % 2
    x = np.column_stack([rng.normal(4.0 * own), rng.poisson(1 + 6 * own)]).astype(float)
    blocks = [Block("numeric", GaussianMixture(), (0,)), Block("count", PoissonMixture(), (1,))]
    model = MixtureInformation(ProductMixture(2, blocks=blocks, random_state=0)).fit(x)
    assert set(model.standard_errors_) == {"weights_", "block_0.means_", "block_0.covariances_", "block_1.rates_"}
    rates = model.estimator_.blocks_[1].estimator.rates_[:, 0]
    expected = np.sqrt(rates / (200 * model.estimator_.weights_))  # groups far apart: as if the labels were known
    np.testing.assert_allclose(model.standard_errors_["block_1.rates_"][:, 0], expected, rtol=0.2)
    assert model.intervals_["block_1.rates_"].shape == (2, 2, 1)
    flat = GaussianMixture(2, random_state=0).fit(torch.tensor(x))
    same = GaussianMixture(2, random_state=0).fit(x)
    np.testing.assert_allclose(standard_errors(flat, torch.tensor(x))["means_"], standard_errors(same, x)["means_"],
                               rtol=1e-5)


def test_models_with_a_shared_shape_tell_of_means_alone():
    model = MixtureInformation(GaussianMixture(2, covariance_type="VEV", random_state=0)).fit(groups())
    assert set(model.standard_errors_) == {"weights_", "means_"}


@pytest.mark.parametrize("estimator, rows, message", [
    (GaussianMixture(2, fixed="means", random_state=0), 300, "GaussianMixture holds parameters"),
    (VonMisesFisherMixture(2, random_state=0), 300, "VonMisesFisherMixture holds parameters or ties them"),
    (GaussianMixture(3, random_state=0), 12, "17 free numbers for 12 rows"),
])
def test_refusals(estimator, rows, message):
    with pytest.raises(ValueError, match=message):
        MixtureInformation(estimator).fit(groups(rows))


def test_options_that_are_none():
    for options in ({"kind": "louis"}, {"level": 1.0}):
        with pytest.raises(ValueError, match="expected 'scores' or 'hessian', and a level"):
            MixtureInformation(**options).fit(groups())


def test_equal_components_cannot_be_told_apart():
    x = np.random.default_rng(0).normal(size=(100, 1))
    model = GaussianMixture(2, init_params="random", random_state=0, max_iter=0, weights_init=[0.5, 0.5],
                            means_init=[[0.0], [0.0]], precisions_init=[[[1.0]], [[1.0]]]).fit(x)
    with pytest.raises(ValueError, match=r"do not tell some parameters apart|no maximum here"):
        standard_errors(model, x)
