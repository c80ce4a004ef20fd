"""What mixtures with means and covariances share: starting values, attributes in the data's units, sampling.

K components, D columns.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from mixwell.density._covariances import (
    BOUND_TO_UNITS,
    LAYOUTS,
    LETTERS,
    as_full,
    inverse_of_root,
    root_of_precision,
)
from mixwell.density.mixtures._parts import MixtureConfig, MixtureEstimator
from mixwell.density.mixtures._scores import as_array
from mixwell.density.mixtures.em.frame import Frame
from mixwell.density.mixtures.em.gaussian import Gaussian
from mixwell.density.mixtures.em.kernels import MATRICES
from mixwell.density.mixtures.em.loop import Family, Params
from mixwell.density.mixtures.em.models import free_numbers
from mixwell.density.mixtures.em.rows import Rows, column_name

OWN_COVARIANCES = ("full", "diag", "spherical", "VVV", "VVI", "VII")  # models whose components share nothing


@dataclass(frozen=True, kw_only=True)
class NormalConfig(MixtureConfig):
    """Options of mixtures with means and covariances."""

    covariance_type: str = "full"  # or "tied", "diag", "spherical", "EII" to "VVV" (mclust's fourteen)
    reg_covar: float | str = 1e-6  # added to variances; "scale": 1e-6 of each column's
    weights_init: Any = None  # (K,)
    means_init: Any = None  # (K, D)
    precisions_init: Any = None  # in the shape of the covariances


class NormalMixture(MixtureEstimator):
    """Estimator whose components have a mean and a covariance of one of the types or models."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureEstimator._parameter_constraints,
        "covariance_type": [StrOptions(set(LAYOUTS))],
        "reg_covar": [Interval(Real, 0.0, None, closed="left"), StrOptions({"scale"})],
        "weights_init": ["array-like", None],
        "means_init": ["array-like", None],
        "precisions_init": ["array-like", None],
    }
    _fixable: tuple[str, ...] = ("weights", "means", "covariances")
    _allow_nan = True

    def _check_start(self, rows: Rows) -> None:
        K, D = self.n_components, rows.n_columns
        if self.weights_init is not None:
            _check_weights(self.weights_init, K)
        if self.means_init is not None:
            _shaped(self.means_init, (K, D), "means")
        if self.precisions_init is not None:
            _check_precisions(self.precisions_init, self._layout, K, D)

    @property
    def _partly(self) -> tuple[str, ...]:  # type: ignore[override]
        """All but covariances that components share something of."""
        own = self.covariance_type in OWN_COVARIANCES
        return self._fixable if own else tuple(name for name in self._fixable if name != "covariances")

    @property
    def _layout(self) -> str:
        """The shape in which covariances are kept."""
        return LAYOUTS[self.covariance_type]

    def _units(self) -> str:
        """The type that says how a frame may scale columns: a model bound to their units wants one scale for all."""
        return "spherical" if self.covariance_type in BOUND_TO_UNITS else self._layout

    def _start_is_given(self) -> bool:
        given = (self.weights_init, self.means_init, self.precisions_init)
        return all(value is not None for value in given)

    def _build_family(self, rows: Rows, weights_N: Tensor | None) -> Family:
        by_scale = self.reg_covar == "scale"
        floor = self._floor()
        frame = Frame.of(rows, weights_N, self._units(), floor, whole=by_scale)
        self._warn_of_columns(frame, rows)
        relative_D = torch.zeros_like(frame.shift_D)
        if by_scale:
            relative_D = 1e-6 * frame.variance_D
        fixed = self._fixed()
        return self._make_family(self.covariance_type, frame, relative_D + floor, rows.dtype, fixed)

    def _make_family(self, *arguments: Any) -> Gaussian:
        return Gaussian(*arguments)

    def _extra(self, device: torch.device) -> Params:
        """Parameters beside weights, means and covariances, from the attributes."""
        return {}

    def _floor(self) -> float:
        """The absolute part of the regularisation."""
        return 0.0 if isinstance(self.reg_covar, str) else float(self.reg_covar)

    def _warn_of_columns(self, frame: Frame, rows: Rows) -> None:
        constant_D = frame.variance_D == 0
        below_D = frame.variance_D <= self._floor()
        _warn_of(constant_D, "is constant: its variance is reg_covar alone", rows)
        _warn_of(below_D & ~constant_D, "has a variance below reg_covar, which drowns it: scale the data, or pass "
                                        "reg_covar='scale'", rows)

    def _refine_start(self, family: Gaussian, params: Params) -> Params:  # type: ignore[override]
        frame = family.frame
        params = dict(params)
        if self.weights_init is not None:
            weights_K = _tensor(self.weights_init, frame)
            params["weights"] = weights_K[None]
        if self.means_init is not None:
            means_KD = _tensor(self.means_init, frame)
            params["means"] = _standardised(frame, means_KD)[None]
        if self.precisions_init is not None:
            precisions = _tensor(self.precisions_init, frame)
            root = root_of_precision(self._layout, precisions)
            params |= _framed(self._layout, frame, root[None])
        return params

    def _warm(self, family: Gaussian) -> Params:  # type: ignore[override]
        frame = family.frame
        means_KD = _tensor(self.means_, frame)
        root = _tensor(self.precisions_cholesky_, frame)
        params = self._extra(frame.shift_D.device)
        params["weights"] = _tensor(self.weights_, frame)
        params["means"] = _standardised(frame, means_KD)
        return params | _framed(self._layout, frame, root)

    def _scoring(self, dtype: torch.dtype, device: torch.device) -> tuple[Family, Params]:
        mean_D, variance_D = self._moments(device)
        frame = Frame.from_moments(mean_D, variance_D, self._units(), 0.0)
        unregularised_D = torch.zeros_like(mean_D)
        family = self._make_family(self.covariance_type, frame, unregularised_D, dtype, self._fixed())
        return family, self._warm(family)

    def _moments(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean (D,) and variances (D,) of the fitted mixture in float64."""
        fitted = (self.weights_, self.means_, self.precisions_cholesky_)
        weights_K, means_KD, root = (torch.as_tensor(value).to(device, torch.float64) for value in fitted)
        covariances = inverse_of_root(self._layout, root[None])
        full_SKDD = as_full(self.covariance_type, covariances, means_KD[None])
        within_KD = full_SKDD[0].diagonal(dim1=-2, dim2=-1)
        share_K = weights_K / weights_K.sum()
        mean_D = share_K @ means_KD
        between_KD = (means_KD - mean_D) ** 2
        return mean_D, share_K @ (within_KD + between_KD)

    def _publish(self, family: Gaussian, params: Params, like: Any) -> None:  # type: ignore[override]
        frame = family.frame
        back_D = 1 / frame.scale_D
        means_KD = params["means"] * back_D + frame.shift_D
        covariances, root, precisions = _in_data_units(self._layout, frame, params)
        values = {"weights_": params["weights"], "means_": means_KD, "covariances_": covariances,
                  "precisions_cholesky_": root, "precisions_": precisions}
        for name, value in values.items():
            kept = value.to(self._dtype).contiguous()
            setattr(self, name, self._emit(kept, like))

    def _n_parameters(self) -> int:
        K, D = self.means_.shape
        name: str = self.covariance_type
        letters = LETTERS.get(name, name)
        own = free_numbers(letters, K, D)
        return self._count_free({"weights": K - 1, "means": K * D, "covariances": own})

    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        means_KD = as_array(self.means_)
        covariances = as_array(self.covariances_)
        parts = []
        for k, (mean_D, count) in enumerate(zip(means_KD, counts_K)):
            covariance = covariances if self._layout == "tied" else covariances[k]
            if self._layout in MATRICES:
                part = rng.multivariate_normal(mean_D, covariance, int(count))
            else:
                noise = rng.standard_normal(size=(count, len(mean_D)))
                part = mean_D + noise * np.sqrt(covariance)
            parts.append(part)
        return np.vstack(parts)


def _tensor(value: Any, frame: Frame) -> Tensor:
    """A value as a tensor of the frame's type, on its device."""
    if not isinstance(value, Tensor):
        value = torch.as_tensor(np.array(value))
    return value.to(frame.shift_D)


def _warn_of(mask_D: Tensor, text: str, rows: Rows) -> None:
    """Warn of the first column that a mask holds for, if there is one."""
    if bool(mask_D.any()):
        column = int(mask_D.nonzero()[0, 0])
        name = column_name(rows.names, column)
        warnings.warn(f"column {name} {text}.", UserWarning, stacklevel=6)


def _standardised(frame: Frame, means_KD: Tensor) -> Tensor:
    """Means in the frame's coordinates."""
    return (means_KD - frame.shift_D) * frame.scale_D


def _in_data_units(kind: str, frame: Frame, params: Params) -> tuple[Tensor, Tensor, Tensor]:
    """Covariances, roots of the precisions and precisions, from those in standardised coordinates."""
    root, covariances = params["cholesky"], params["covariances"]
    back_D = 1 / frame.scale_D
    if kind in MATRICES:
        root = root * frame.scale_D[:, None]
        rescaled = covariances * back_D[:, None]
        return rescaled * back_D, root, root @ root.mT
    unit = back_D if kind == "diag" else back_D[0]
    root = root / unit
    return covariances * unit**2, root, root**2


def _framed(kind: str, frame: Frame, root: Tensor) -> Params:
    """Root of the precision and covariances in standardised coordinates, from the root in the data's own."""
    scale = frame.scale_D
    if kind in MATRICES:
        scale = scale[:, None]
    elif kind == "spherical":
        scale = scale[0]
    root = root / scale
    return {"cholesky": root, "covariances": inverse_of_root(kind, root)}


def _shaped(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """A starting value as an array, or a `ValueError` where it has another shape."""
    if isinstance(value, Tensor):
        value = value.cpu().numpy()
    array = check_array(value, dtype=[np.float64, np.float32], ensure_2d=False, allow_nd=True)
    if array.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {array.shape}")
    return array


def _check_weights(weights: Any, components: int) -> None:
    weights_K = _shaped(weights, (components,), "weights")
    low, high = weights_K.min(), weights_K.max()
    if low < 0 or high > 1:
        raise ValueError("The parameter 'weights' should be in the range [0, 1], but got max value "
                         f"{high:.5f}, min value {low:.5f}")
    total = weights_K.sum()
    tolerated = 1e-6 if weights_K.dtype == np.float32 else 1e-8
    if abs(1 - total) > tolerated:
        raise ValueError(f"The parameter 'weights' should be normalized, but got sum(weights) = {total:.5f}")


def _check_precisions(precisions: Any, kind: str, K: int, D: int) -> None:
    shapes = {"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}
    array = _shaped(precisions, shapes[kind], f"{kind} precision")
    if kind not in MATRICES:
        if (array <= 0).any():
            raise ValueError(f"'{kind} precision' should be positive")
        return
    for matrix in array.reshape(-1, D, D):
        if not _positive_definite(matrix):
            raise ValueError(f"'{kind} precision' should be symmetric, positive-definite")


def _positive_definite(matrix_DD: np.ndarray) -> bool:
    """Whether a matrix is symmetric with eigenvalues above zero."""
    if not np.allclose(matrix_DD, matrix_DD.T):
        return False
    eigenvalues_D = np.linalg.eigvalsh(matrix_DD)
    return bool((eigenvalues_D > 0).all())
