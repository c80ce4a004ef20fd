"""Sparse tables of counts: the numbers of the same table with its zeros, by their entries alone."""

import numpy as np
import pytest
import scipy.sparse as sp

from mixwell.density import (
    ExponentialMixture,
    GaussianMixture,
    NegativeBinomialMixture,
    PoissonMixture,
    ZeroInflatedNegativeBinomialMixture,
    ZeroInflatedPoissonMixture,
)
from mixwell.density.mixtures.em import sparse
from mixwell.density.mixtures.em.sparse import SparseRows

KINDS = [PoissonMixture, NegativeBinomialMixture, ZeroInflatedPoissonMixture, ZeroInflatedNegativeBinomialMixture,
         ExponentialMixture]
RNG = np.random.default_rng(0)
RATES = RNG.gamma(0.3, 2.0, (3, 12))
X = RNG.poisson(RATES[RNG.integers(0, 3, 200)] * RNG.gamma(2, 0.5, (200, 12))).astype(float)
WEIGHTS = RNG.integers(0, 3, 200)
FEW = {"random_state": 0, "max_iter": 4}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_table_gives_the_numbers_of_the_whole_one(kind, monkeypatch):
    monkeypatch.setattr(sparse, "MOST_ENTRIES", 100)  # many pieces
    whole = kind(3, **FEW).fit(X, sample_weight=WEIGHTS)
    found = kind(3, **FEW).fit(sp.csr_array(X), sample_weight=WEIGHTS)
    np.testing.assert_allclose(found.lower_bounds_, whole.lower_bounds_, rtol=1e-9)
    np.testing.assert_allclose(found.score_samples(sp.csr_array(X)), whole.score_samples(X), rtol=1e-6)
    np.testing.assert_allclose(found.predict_proba(sp.csc_matrix(X)), whole.predict_proba(X), atol=1e-6)
    assert found.bic(sp.coo_array(X)) == pytest.approx(whole.bic(X), rel=1e-8)
    np.testing.assert_array_equal(found.predict(sp.csr_array(X)), whole.predict(X))


@pytest.mark.parametrize("init", ["k-means++", "random", "random_from_data"])
def test_starts_are_those_of_the_whole_table(init):
    whole = PoissonMixture(3, init_params=init, **FEW).fit(X)
    found = PoissonMixture(3, init_params=init, **FEW).fit(sp.csr_matrix(X))
    np.testing.assert_allclose(found.rates_, whole.rates_, rtol=1e-9)
    few = PoissonMixture(3, init_params=init, init_size=50, **FEW)
    np.testing.assert_allclose(few.fit(sp.csr_array(X)).rates_, few.fit(X).rates_, rtol=1e-9)


def test_clusters_of_a_sparse_table_start_as_well():
    """scikit-learn's k-means stops a step earlier or later for sparse tables."""
    whole = PoissonMixture(3, random_state=0).fit(X)
    assert PoissonMixture(3, random_state=0).fit(sp.csr_array(X)).score(X) == pytest.approx(whole.score(X), abs=0.01)


def test_a_table_that_no_memory_holds_is_fitted():
    rows, columns = 1_000_000, 200_000  # 1.6 TB with its zeros
    place, row = RNG.integers(0, columns, 20_000), RNG.integers(0, rows, 20_000)
    x = sp.csr_array((np.ones(20_000), (row, place)), shape=(rows, columns))
    model = PoissonMixture(2, random_state=0, max_iter=1, init_params="random_from_data").fit(x)
    assert model.rates_.shape == (2, columns) and np.isfinite(model.score(x))


def test_what_was_given_stays_and_repeated_entries_are_summed():
    twice = sp.csr_array((np.ones(4), np.array([1, 1, 0, 1]), np.array([0, 2, 3, 4])), shape=(3, 2))
    model = PoissonMixture(1).fit(twice)
    np.testing.assert_allclose(model.rates_, [[1 / 3, 1.0]])
    assert twice.nnz == 4


def test_batches_learn_from_sparse_tables():
    whole = PoissonMixture(3, random_state=0).partial_fit(X[:50]).partial_fit(X[50:])
    found = PoissonMixture(3, random_state=0).partial_fit(sp.csr_array(X[:50])).partial_fit(sp.csr_array(X[50:]))
    np.testing.assert_allclose(found.rates_, whole.rates_, rtol=1e-9)
    many = PoissonMixture(3, random_state=0, batch_size=40, max_iter=2).fit(sp.csr_array(X))
    assert many.score(X) > PoissonMixture(1).fit(X).score(X)


def test_refusals_name_row_and_column():
    wrong = X.copy()
    wrong[5, 3] = -2.0
    with pytest.raises(ValueError, match="Negative values in data passed to PoissonMixture: row 5, column 3"):
        PoissonMixture(2).fit(sp.csr_array(wrong))
    with pytest.raises(ValueError, match="contains NaN"):
        PoissonMixture(2).fit(sp.csr_array(np.where(X > 5, np.nan, X)))
    with pytest.raises(TypeError, match=r"[Ss]parse data"):
        GaussianMixture(2).fit(sp.csr_array(X))


def test_rows_say_where_a_value_stands_zeros_included():
    rows = SparseRows(sp.csr_array(np.array([[1.0, 0.0], [0.0, 3.0]])))
    assert rows.first_where(lambda x: x > 2) == (1, 1)
    assert rows.first_where(lambda x: x == 0) == (0, 1)
    assert rows.first_where(lambda x: x < 0) is None
