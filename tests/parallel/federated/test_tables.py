"""Mixtures of tables that stay with their owners: as good as pooled fits, weights of each table, bad tables told."""

import numpy as np
import pandas as pd
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
    with pytest.raises(MixwellError, match="rounds is -1; expected at least 1 and 0"):
        fit_tables(tables, 2, rounds=-1)
    with pytest.raises(MixwellError, match=r"table 0 has the shape \(3, 0\); expected rows and columns"):
        fit_tables([np.zeros((3, 0))], 2)
    with pytest.raises(MixwellError, match="table 1 holds what is no number"):
        fit_tables([tables[0], [["a", "b"]]], 2)


def test_frames_are_tables_whose_columns_have_names(tables):
    frames = [pd.DataFrame(table, columns=["a", "b"]) for table in tables]
    found, plain = fit_tables(frames, 2, rounds=3, n_init=1), fit_tables(tables, 2, rounds=3, n_init=1)
    assert found.log_likelihood == plain.log_likelihood
    with pytest.raises(MixwellError, match=r"columns \['a', 'b'\] and \['b', 'a'\] came; expected the same"):
        fit_tables([frames[0], frames[1][["b", "a"]]], 2)


@pytest.mark.parametrize("far, reg_covar, rounds", [(1e8, 1e-6, 1), (0.0, 0.0, 50)])
def test_components_without_a_density_are_told_in_a_line(far, reg_covar, rounds):
    """Columns whose size leaves no digits for their spread, and a component that shrinks to rows that are alike."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(0, 1, (20, 2)), np.full((5, 2), 50.0)]) + far
    with pytest.raises(MixwellError, match=r"a component has no density.*raise reg_covar"):
        fit_tables([rows], 4, rounds=rounds, reg_covar=reg_covar)
