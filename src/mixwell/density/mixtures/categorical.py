"""Categorical mixture (latent class analysis): columns are independent categories within each component.

**Equation:** p(x) = sum_k w_k prod_d p_kd(x_d). E step: r_nk = w_k prod_d p_kd(x_nd) / p(x_n), over the observed d. M
step: w_k = mean_n r_nk; p_kd(c) = (sum_n r_nk [x_nd = c] + alpha) / (sum over c of the same), over the rows where
column d is observed.

**Shapes:** X (N, D), categories as numbers or, in a DataFrame or object array, as text (numbers beside text count as
text, 2.0 as "2"); `weights_` (K,), `categories_` D arrays, `probabilities_` D arrays (K, C_d).

**Reference:** Lazarsfeld, Henry (1968), Latent Structure Analysis; Goodman (1974), Exploratory Latent Structure
Analysis Using Both Identifiable and Unidentifiable Models.

**Differs:** `alpha` adds pseudo-counts (default 0, plain maximum likelihood; with more, `lower_bounds_` is still the
likelihood alone). The categories are those of the data that a fit, or the first `partial_fit`, has seen.

**Fails when:** columns depend on each other within a component; a category that was not there in fitting is an error
(`ValueError`), or a missing value with `unknown="missing"`.

**Cost:** O(N K C) a step, C the categories of all columns together.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_feature_names, _check_n_features, _get_feature_names
from torch import Tensor

from mixwell.core.method import method
from mixwell.density.mixtures._parts import MixtureConfig
from mixwell.density.mixtures._plain import PlainMixture
from mixwell.density.mixtures.em.exponential import ExponentialFamily, Sums
from mixwell.density.mixtures.em.loop import Params
from mixwell.density.mixtures.em.rows import ArrayRows, Rows, column_name


class Categorical(ExponentialFamily):
    """Features are one-hot codes of all columns side by side; a missing value is a column of zeros."""

    def __init__(self, values: list[Tensor], alpha: float, fixed: tuple[str, ...]) -> None:
        super().__init__(fixed)
        self.values, self.alpha = values, alpha
        self.sizes = [len(v) for v in values]
        self.feature_count = sum(self.sizes)

    def features(self, x_BD: Tensor) -> Tensor:
        phi_PB = torch.zeros(self.feature_count, len(x_BD), dtype=torch.float64, device=x_BD.device)
        first, places = 0, torch.arange(len(x_BD), device=x_BD.device)
        for column, (values, size) in enumerate(zip(self.values, self.sizes)):
            x_B = x_BD[:, column].double()
            code = torch.searchsorted(values, x_B.contiguous()).clamp(max=size - 1)
            phi_PB[first + code, places] = (values[code] == x_B).double()
            first += size
        return phi_PB

    def natural(self, params: Params) -> tuple[Tensor, Tensor]:
        return params["probabilities"].clamp(min=1e-300).log(), torch.zeros_like(params["weights"])

    def update(self, sums: Sums, params: Params | None) -> Params:
        parts = []
        for counts in (sums.sums_SKP + self.alpha).split(self.sizes, -1):
            total = counts.sum(-1, keepdim=True)
            parts.append(torch.where(total > 0, counts / total.clamp(min=1e-300), 1.0 / counts.shape[-1]))
        return {"probabilities": torch.cat(parts, -1)}


@dataclass(frozen=True, kw_only=True)
class Config(MixtureConfig):
    """Options beside those of every mixture."""

    alpha: float = 0.0  # pseudo-count of every category
    unknown: str = "error"  # or "missing": what a category not seen in fitting is taken for


@method(title="Categorical mixture", year=1968,
        tags={"estimator", "mixture", "missing", "online", "categories"})
class CategoricalMixture(PlainMixture, config=Config):
    """Latent classes over categorical columns; options in `Config`, others as `GaussianMixture`'s."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **PlainMixture._parameter_constraints,
        "alpha": [Interval(Real, 0.0, None, closed="left")],
        "unknown": [StrOptions({"error", "missing"})],
    }
    _attributes: ClassVar[dict[str, str]] = {"probabilities": "_flat_probabilities"}
    _fixable = ("weights", "probabilities")
    _allow_nan = True
    _distributable = False  # categories and blocks are read off the rows
    _text: bool  # whether categories are text, as the fit found them

    def _open(self, X: Any, *, reset: bool) -> Rows:
        columns = _columns(X) if reset or self._text else None
        text = any(_has_text(column) for column in columns or ()) if reset else self._text
        if not text:
            rows = super()._open(X, reset=reset)
            if reset:
                self._text = False
                self.categories_ = [np.unique(np.concatenate(parts)) for parts in zip(*(
                    [np.unique(c[~np.isnan(c)]) for c in chunk.cpu().numpy().T] for _, chunk in rows.chunks()))]
            return rows
        if columns is None:
            raise ValueError("the model was fitted on a table with text; expected such a table (a DataFrame or an "
                             f"array of two dimensions), got {type(X).__name__}.")
        _check_feature_names(self, X, reset=reset)
        _check_n_features(self, X, reset=reset)
        if reset:
            self._text = True
            self.categories_ = [np.unique(_names(column[~_absent(column)])) for column in columns]
        codes_ND = np.stack([_encode(column, known) for column, known in zip(columns, self.categories_)], 1)
        names = _get_feature_names(X)
        return ArrayRows(codes_ND, None if names is None else list(names))

    def _check_input(self, rows: Rows) -> None:
        for column, known in enumerate(self.categories_):
            if len(known) == 0:
                raise ValueError(f"column {column} has no value at all; remove it.")
        if self.unknown == "missing":
            return
        for start, chunk in rows.chunks():
            for column, values in enumerate(self._values(chunk.device)):
                x_B = chunk[:, column].double().contiguous()
                code = torch.searchsorted(values, x_B).clamp(max=len(values) - 1)
                strange = (values[code] != x_B) & ~torch.isnan(x_B)
                if bool(strange.any()):
                    row = int(strange.nonzero()[0, 0])
                    name = column_name(rows.names, column)
                    raise ValueError(f"unknown category in row {start + row}, column {name}; it was not there in "
                                     "fitting. Pass unknown='missing' to leave such values out.")

    def _values(self, device: torch.device) -> list[Tensor]:
        return [torch.arange(len(c), dtype=torch.float64, device=device) if self._text
                else torch.as_tensor(c, dtype=torch.float64, device=device) for c in self.categories_]

    def _family(self, columns: int, device: torch.device) -> Categorical:
        return Categorical(self._values(device), self.alpha, self._fixed())

    def _publish(self, family: Any, params: Params, like: Any) -> None:
        super()._publish(family, params, like)
        self.probabilities_ = [self._emit(p.to(self._dtype), like) for p in params["probabilities"].split(
            family.sizes, -1)]

    def _start_points(self, x_ND: np.ndarray) -> np.ndarray:
        return self._family(x_ND.shape[1], torch.device("cpu")).features(torch.from_numpy(np.array(x_ND))).T.numpy()

    def _n_parameters(self) -> int:
        K = len(self.weights_)
        free = {"weights": K - 1, "probabilities": K * sum(len(c) - 1 for c in self.categories_)}
        return sum(number for name, number in free.items() if name not in self._fixed())

    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        labels = np.repeat(np.arange(len(counts_K)), counts_K)
        columns = []
        for known, p_KC in zip(self.categories_, self.probabilities_):
            bounds_KC = np.cumsum(torch.as_tensor(p_KC).cpu().numpy().astype(float), axis=1)
            codes = (rng.uniform(size=(len(labels), 1)) > bounds_KC[labels] / bounds_KC[labels, -1:]).sum(1)
            columns.append(np.asarray(known)[codes])
        return np.stack(columns, 1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = True
        return tags


def _columns(X: Any) -> list[np.ndarray] | None:
    """Columns of a table; None where X is none."""
    if isinstance(X, np.ndarray):
        return list(X.T) if X.ndim == 2 else None
    if hasattr(X, "columns") and hasattr(X, "__getitem__"):
        return [np.asarray(X[name], dtype=object) for name in X.columns]
    return None


def _has_text(values: np.ndarray) -> bool:
    return values.dtype.kind in "OUS" and any(isinstance(value, str) for value in values)


def _absent(column: np.ndarray) -> np.ndarray:
    return np.array([value is None or str(value) == "<NA>" or value != value for value in column], dtype=bool)


def _names(column: np.ndarray) -> np.ndarray:
    """Categories as text; a number in a column that became float for a missing value keeps its name."""
    return np.array([str(int(value)) if isinstance(value, (float, np.floating)) and float(value).is_integer()
                     else str(value) for value in column], dtype=str)


def _encode(column: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Codes of a column: NaN for a missing value, -1 for an unknown one."""
    absent, text = _absent(column), _names(column)
    code = np.searchsorted(known, text).clip(max=max(len(known) - 1, 0))
    found = known[code] == text if len(known) else np.zeros(len(column), bool)
    return np.where(absent, np.nan, np.where(found, code, -1.0))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three columns of categories from two classes."""
    likely_ND = torch.tensor([[0.9, 0.8, 0.85], [0.1, 0.2, 0.25]]).repeat_interleave(80, 0)
    x_ND = (torch.rand(160, 3, generator=generator) < likely_ND).double()
    return {"estimator": CategoricalMixture(2, random_state=0), "X": x_ND.numpy()}
