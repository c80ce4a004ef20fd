"""Mixtures of tables that stay with their owners: as good as pooled fits, weights of each table, bad tables told."""

import numpy as np
import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.density import GaussianMixture
from mixwell.parallel.federated.tables import fit_tables


@pytest.fixture(scope="module")
def tables():
    """Three tables with other shares of two groups, in columns of other units."""
    rng = np.random.default_rng(0)
    parts = []
    for first in (40, 20, 4):
        rows = rng.normal(0, 1, (50, 2))
        rows[:first] += 8
        parts.append(rows * [1.0, 100.0])
    return parts


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_it_is_as_good_as_a_fit_of_all_rows(tables):
    found = fit_tables(tables, 2, rounds=30, n_init=2)
    x = np.concatenate(tables)
    pooled = GaussianMixture(2, random_state=0, tol=1e-9, max_iter=200).fit(x)
    assert found.log_likelihood == pytest.approx(pooled.score(x), abs=1e-6)
    assert found.log_likelihood == pytest.approx(float(found.density.log_prob(torch.from_numpy(x)).mean()))
    assert sorted(found.density.weights_K.tolist()) == pytest.approx(sorted(pooled.weights_), abs=1e-4)
    heavy = int(found.density.means_KD[:, 0].argmax())
    assert found.weights_TK[:, heavy].tolist() == pytest.approx([0.8, 0.4, 0.08], abs=0.02)


def test_tables_with_weights_of_their_own_are_explained_better(tables):
    shared = fit_tables(tables, 2, rounds=20, n_init=1)
    own = fit_tables(tables, 2, rounds=20, n_init=1, personal=True)
    assert own.log_likelihood > shared.log_likelihood + 0.05
    assert own.down_bytes < shared.down_bytes and own.up_bytes == shared.up_bytes  # pi stays at home


def test_more_starts_cost_more_and_are_never_worse(tables):
    one = fit_tables(tables, 3, rounds=5, n_init=1)
    two = fit_tables(tables, 3, rounds=5, n_init=2)
    assert two.log_likelihood >= one.log_likelihood and two.up_bytes == 2 * one.up_bytes
    again = fit_tables(tables, 3, rounds=5, n_init=1, random_state=1)
    assert max(one.log_likelihood, again.log_likelihood) == two.log_likelihood
    wide = fit_tables(tables, 1, rounds=1, n_init=1, reg_covar=5.0).density.covariances_KDD[0]
    plain = fit_tables(tables, 1, rounds=1, n_init=1, reg_covar=0.0).density.covariances_KDD[0]
    assert (wide - plain).diagonal().tolist() == pytest.approx([5.0, 5.0])


def test_refusals(tables):
    with pytest.raises(MixwellError, match=r"tables with \[2, 3\] columns came"):
        fit_tables([tables[0], np.zeros((4, 3))], 2)
    with pytest.raises(MixwellError, match=r"tables with \[\] columns came"):
        fit_tables([], 2)
    with pytest.raises(MixwellError, match="table 1 holds NaN or infinity"):
        fit_tables([tables[0], np.full((4, 2), np.nan)], 2)
    with pytest.raises(MixwellError, match=r"table 0 has the shape \(4,\); expected rows and columns"):
        fit_tables([np.zeros(4)], 2)
    with pytest.raises(MixwellError, match="n_init is 0"):
        fit_tables(tables, 2, n_init=0)
