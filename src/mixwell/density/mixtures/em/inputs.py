"""What a fit is given, checked: rows of any kind, their columns, their weights.

N rows, D columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils.validation import validate_data
from torch import Tensor

from mixwell.density.mixtures.em.processes import Alone
from mixwell.density.mixtures.em.rows import ArrayRows, Rows, open_rows, tensor_rows
from mixwell.density.mixtures.em.sparse import SparseRows


def open_input(model: Any, X: Any, *, reset: bool, allow_nan: bool, sparse: bool = False) -> Rows:
    """Rows of an array, a table, a tensor or files; `ValueError` where `model` cannot be fitted to, or read, them.

    reset: note the columns on the estimator `model`, as a fit does, instead of comparing them. sparse: whether a sparse
    table is taken as it is, an entry that is not there being zero.
    """
    least = 2 if reset else 1
    rows = open_rows(X)
    if rows is None and isinstance(X, Tensor):
        rows = tensor_rows(X, allow_nan)
    if rows is None:
        return _open_array(model, X, least, reset, allow_nan, sparse)
    rows.allow_nan = allow_nan
    note_columns(model, rows, reset)
    if rows.n_rows < least:
        raise ValueError(f"Found array with {rows.n_rows} sample(s) (shape=({rows.n_rows}, {rows.n_columns})) while a "
                         f"minimum of {least} is required by {type(model).__name__}.")
    return rows


def _open_array(model: Any, X: Any, least: int, reset: bool, allow_nan: bool, sparse: bool) -> Rows:
    """Rows of what scikit-learn takes for a table."""
    as_entries = sparse and issparse(X)
    finite: Any = "allow-nan" if allow_nan and not as_entries else True
    kinds = "csr" if as_entries else False
    x_ND = validate_data(model, X, dtype=[np.float64, np.float32], ensure_min_samples=least, ensure_all_finite=finite,
                         reset=reset, accept_sparse=kinds)
    if as_entries:
        return SparseRows(x_ND)
    names = getattr(model, "feature_names_in_", None)
    if names is not None:
        names = list(names)
    return ArrayRows(x_ND, names)


def note_columns(model: Any, rows: Rows, reset: bool) -> None:
    """`n_features_in_` and `feature_names_in_` of an estimator, set by a fit and compared afterwards.

    Raises a `ValueError` where number or names of the columns are others than in fitting.
    """
    if reset:
        _set_columns(model, rows)
        return
    expected = model.n_features_in_
    if rows.n_columns != expected:
        raise ValueError(f"X has {rows.n_columns} features, but {type(model).__name__} is expecting "
                         f"{expected} features as input.")
    known = getattr(model, "feature_names_in_", None)
    if rows.names is None or known is None:
        return
    if list(rows.names) != list(known):
        raise ValueError("The feature names should match those that were passed during fit: expected "
                         f"{_listed(known)}; got {_listed(rows.names)}.")


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))


def _set_columns(model: Any, rows: Rows) -> None:
    """Columns as a fit found them."""
    model.n_features_in_ = rows.n_columns
    if rows.names is not None:
        model.feature_names_in_ = np.asarray(rows.names, dtype=object)
    elif hasattr(model, "feature_names_in_"):
        del model.feature_names_in_


def checked_weights(sample_weight: Any, rows: Rows) -> Tensor | None:
    """Weights (N,) of the rows in float64; None where all are one.

    Raises a `ValueError` where they are of another number, not finite, negative or all zero.
    """
    if sample_weight is None:
        return None
    weights_N = _as_float64(sample_weight, rows.device)
    if weights_N.ndim == 0:
        weights_N = weights_N.expand(rows.n_rows).clone()
    if weights_N.shape != (rows.n_rows,):
        raise ValueError(f"sample_weight.shape == {tuple(weights_N.shape)}, expected ({rows.n_rows},)!")
    finite = bool(weights_N.isfinite().all())
    if not finite or bool((weights_N < 0).any()) or not bool((weights_N > 0).any()):
        raise ValueError("sample_weight must be finite, not negative, and not all zero.")
    return weights_N


def _as_float64(value: Any, device: torch.device) -> Tensor:
    """A copy of what is an array, or like one; a tensor as it is where type and device fit."""
    if isinstance(value, Tensor):
        return value.detach().double().to(device)
    array = np.array(value, dtype=np.float64)
    return torch.as_tensor(array).to(device)


def spread_over(processes: Alone, rows: Rows) -> None:
    """Mark rows as one process's share of a table, whose columns and number type the processes agree on.

    Raises a `ValueError` where they do not.
    """
    rows.processes = processes
    own = torch.tensor([rows.n_columns, rows.dtype.itemsize])
    first = processes.first(own)
    with processes.together():
        if not torch.equal(own, first):
            raise ValueError(f"{own.tolist()} columns and bytes a number, {first.tolist()} in the first process; "
                             "expected the same.")
