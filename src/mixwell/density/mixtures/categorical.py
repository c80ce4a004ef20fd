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
from mixwell.density.mixtures._scores import as_array
from mixwell.density.mixtures.em.exponential import ExponentialFamily, Sums
from mixwell.density.mixtures.em.loop import Params
from mixwell.density.mixtures.em.rows import ArrayRows, Rows, column_name


class Categorical(ExponentialFamily):
    """Features are one-hot codes of all columns side by side; a missing value is a column of zeros."""

    def __init__(self, values: list[Tensor], alpha: float, fixed: tuple[str, ...]) -> None:
        super().__init__(fixed)
        self.values = values
        self.alpha = alpha
        self.sizes = [len(v) for v in values]
        self.feature_count = sum(self.sizes)

    def features(self, x_BD: Tensor) -> Tensor:
        B = len(x_BD)
        phi_PB = torch.zeros(self.feature_count, B, dtype=torch.float64, device=x_BD.device)
        places_B = torch.arange(B, device=x_BD.device)
        first = 0
        for column, values_C in enumerate(self.values):
            code_B, known_B = look_up(values_C, x_BD[:, column])
            phi_PB[first + code_B, places_B] = known_B.double()
            first += len(values_C)
        return phi_PB

    def natural(self, params: Params) -> tuple[Tensor, Tensor]:
        positive = params["probabilities"].clamp(min=1e-300)
        return positive.log(), torch.zeros_like(params["weights"])

    def update(self, sums: Sums, params: Params | None) -> Params:
        counts_SKP = sums.sums_SKP + self.alpha
        parts = [_shares(counts) for counts in counts_SKP.split(self.sizes, -1)]
        return {"probabilities": torch.cat(parts, -1)}


def look_up(values_C: Tensor, x_B: Tensor) -> tuple[Tensor, Tensor]:
    """Places (B,) of numbers among sorted categories, and whether they are there at all."""
    x_B = x_B.double().contiguous()
    after_B = torch.searchsorted(values_C, x_B)
    code_B = after_B.clamp(max=len(values_C) - 1)
    return code_B, values_C[code_B] == x_B


def _shares(counts: Tensor) -> Tensor:
    """Counts of the categories of one column as shares; equal ones where nothing was counted."""
    total = counts.sum(-1, keepdim=True)
    quotient = counts / total.clamp(min=1e-300)
    return torch.where(total > 0, quotient, 1.0 / counts.shape[-1])


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
    _partly = _fixable
    _allow_nan = True
    _distributable = False  # categories and blocks are read off the rows
    _text: bool  # whether categories are text, as the fit found them

    def _open(self, X: Any, *, reset: bool) -> Rows:
        columns = _columns(X) if reset or self._text else None
        if reset:
            text = columns is not None and any(map(_has_text, columns))
        else:
            text = self._text
        if text:
            return self._open_text(X, columns, reset)
        rows = super()._open(X, reset=reset)
        if reset:
            self._text = False
            self.categories_ = _categories(rows)
        return rows

    def _open_text(self, X: Any, columns: list[np.ndarray] | None, reset: bool) -> Rows:
        """Codes of a table's columns, some of which hold text."""
        if columns is None:
            raise ValueError("the model was fitted on a table with text; expected such a table (a DataFrame or an "
                             f"array of two dimensions), got {type(X).__name__}.")
        _check_feature_names(self, X, reset=reset)
        _check_n_features(self, X, reset=reset)
        if reset:
            self._text = True
            self.categories_ = [_text_categories(column) for column in columns]
        codes = [_encode(column, known) for column, known in zip(columns, self.categories_)]
        codes_ND = np.stack(codes, 1)
        names = _get_feature_names(X)
        return ArrayRows(codes_ND, None if names is None else list(names))

    def _check_input(self, rows: Rows) -> None:
        for column, known in enumerate(self.categories_):
            if len(known) == 0:
                raise ValueError(f"column {column} has no value at all; remove it.")
        if self.unknown == "missing":
            return
        for start, chunk in rows.chunks():
            for column, values_C in enumerate(self._values(chunk.device)):
                x_B = chunk[:, column]
                _, known_B = look_up(values_C, x_B)
                strange_B = ~(known_B | torch.isnan(x_B))
                if bool(strange_B.any()):
                    row = start + int(strange_B.nonzero()[0, 0])
                    name = column_name(rows.names, column)
                    raise ValueError(f"unknown category in row {row}, column {name}; it was not there in "
                                     "fitting. Pass unknown='missing' to leave such values out.")

    def _values(self, device: torch.device) -> list[Tensor]:
        """What rows hold of each column's categories: text as codes from 0, numbers as they are."""
        known: Any = self.categories_
        if self._text:
            known = [range(len(column)) for column in known]
        return [torch.as_tensor(column, dtype=torch.float64, device=device) for column in known]

    def _family(self, columns: int, device: torch.device) -> Categorical:
        return Categorical(self._values(device), self.alpha, self._fixed())

    def _publish(self, family: Any, params: Params, like: Any) -> None:
        super()._publish(family, params, like)
        by_column = params["probabilities"].split(family.sizes, -1)
        self.probabilities_ = [self._emit(p_KC.to(self._dtype), like) for p_KC in by_column]

    def _start_points(self, x_ND: np.ndarray) -> np.ndarray:
        family = self._family(x_ND.shape[1], torch.device("cpu"))
        rows_ND = torch.from_numpy(np.array(x_ND))
        phi_PN = family.features(rows_ND)
        return phi_PN.T.numpy()

    def _n_parameters(self) -> int:
        K = len(self.weights_)
        free = sum(len(column) - 1 for column in self.categories_)
        return self._count_free({"weights": K - 1, "probabilities": K * free})

    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        components_K = np.arange(len(counts_K))
        labels_N = np.repeat(components_K, counts_K)
        columns = []
        for known, p_KC in zip(self.categories_, self.probabilities_):
            probability_KC = as_array(p_KC).astype(float)
            bounds_NC = np.cumsum(probability_KC, axis=1)[labels_N]
            draw_N1 = rng.uniform(size=(len(labels_N), 1))
            passed_NC = draw_N1 > bounds_NC / bounds_NC[:, -1:]
            codes_N = passed_NC.sum(1)
            columns.append(np.asarray(known)[codes_N])
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


def _categories(rows: Rows) -> list[np.ndarray]:
    """The numbers that each column holds, sorted."""
    found: list[list[np.ndarray]] = [[] for _ in range(rows.n_columns)]
    for _, chunk in rows.chunks():
        x_BD = chunk.cpu().numpy()
        for own, x_B in zip(found, x_BD.T):
            there = ~np.isnan(x_B)
            own.append(np.unique(x_B[there]))
    return [np.unique(np.concatenate(parts)) for parts in found]


def _text_categories(column: np.ndarray) -> np.ndarray:
    """The categories that a column of text holds, sorted."""
    there = ~_absent(column)
    return np.unique(_names(column[there]))


def _has_text(values: np.ndarray) -> bool:
    if values.dtype.kind not in "OUS":
        return False
    return any(isinstance(value, str) for value in values)


def _absent(column: np.ndarray) -> np.ndarray:
    return np.array([_is_absent(value) for value in column], dtype=bool)


def _is_absent(value: Any) -> bool:
    if value is None or str(value) == "<NA>":
        return True
    return bool(value != value)


def _names(column: np.ndarray) -> np.ndarray:
    """Categories as text."""
    return np.array([_name(value) for value in column], dtype=str)


def _name(value: Any) -> str:
    """A category as text; a number in a column that became float for a missing value keeps its name."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    return str(value)


def _encode(column: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Codes of a column: NaN for a missing value, -1 for an unknown one."""
    text = _names(column)
    code = np.full(len(column), -1.0)
    if len(known):
        after = np.searchsorted(known, text)
        place = after.clip(max=len(known) - 1)
        code = np.where(known[place] == text, place, code)
    return np.where(_absent(column), np.nan, code)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three columns of categories from two classes."""
    likely_2D = torch.tensor([[0.9, 0.8, 0.85], [0.1, 0.2, 0.25]])
    likely_ND = likely_2D.repeat_interleave(80, 0)
    draw_ND = torch.rand(160, 3, generator=generator)
    x_ND = (draw_ND < likely_ND).double()
    return {"estimator": CategoricalMixture(2, random_state=0), "X": x_ND.numpy()}
