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

from mixwell.density._covariances import as_full, inverse_of_root, root_of_precision
from mixwell.density.mixtures._parts import MixtureConfig, MixtureEstimator
from mixwell.density.mixtures.em.frame import Frame
from mixwell.density.mixtures.em.gaussian import COVARIANCE_TYPES, Gaussian
from mixwell.density.mixtures.em.loop import Family, Params
from mixwell.density.mixtures.em.rows import Rows, column_name


@dataclass(frozen=True, kw_only=True)
class NormalConfig(MixtureConfig):
    """Options of mixtures with means and covariances."""

    covariance_type: str = "full"  # or "tied", "diag", "spherical"
    reg_covar: float | str = 1e-6  # added to variances; "scale": 1e-6 of each column's
    weights_init: Any = None  # (K,)
    means_init: Any = None  # (K, D)
    precisions_init: Any = None  # in the shape of the covariances


class NormalMixture(MixtureEstimator):
    """Estimator whose components have a mean and a covariance of one of the four types."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MixtureEstimator._parameter_constraints,
        "covariance_type": [StrOptions(set(COVARIANCE_TYPES))],
        "reg_covar": [Interval(Real, 0.0, None, closed="left"), StrOptions({"scale"})],
        "weights_init": ["array-like", None],
        "means_init": ["array-like", None],
        "precisions_init": ["array-like", None],
    }
    _fixable: tuple[str, ...] = ("weights", "means", "covariances")
    _allow_nan = True

    def _check_start(self, rows: Rows) -> None:
        K, D, kind = self.n_components, rows.n_columns, self.covariance_type
        if self.weights_init is not None:
            _check_weights(self.weights_init, K)
        if self.means_init is not None:
            _shaped(self.means_init, (K, D), "means")
        if self.precisions_init is not None:
            _check_precisions(self.precisions_init, kind, K, D)

    def _start_is_given(self) -> bool:
        return self.weights_init is not None and self.means_init is not None and self.precisions_init is not None

    def _build_family(self, rows: Rows, weights_N: Tensor | None) -> Family:
        frame = Frame.of(rows, weights_N, self.covariance_type, self._floor(), whole=self.reg_covar == "scale")
        self._warn_of_columns(frame, rows)
        relative = 1e-6 * frame.variance_D if self.reg_covar == "scale" else torch.zeros_like(frame.shift_D)
        regularisation = relative + self._floor()
        return self._make_family(self.covariance_type, frame, regularisation, rows.dtype, self._fixed())

    def _make_family(self, *arguments: Any) -> Gaussian:
        return Gaussian(*arguments)

    def _extra(self, device: torch.device) -> Params:
        """Parameters beside weights, means and covariances, from the attributes."""
        return {}

    def _floor(self) -> float:
        """The absolute part of the regularisation."""
        return 0.0 if isinstance(self.reg_covar, str) else float(self.reg_covar)

    def _warn_of_columns(self, frame: Frame, rows: Rows) -> None:
        constant = frame.variance_D == 0
        drowned = (frame.variance_D <= self._floor()) & ~constant
        for mask, text in ((constant, "is constant: its variance is reg_covar alone"),
                           (drowned, "has a variance below reg_covar, which drowns it: scale the data, or pass "
                                     "reg_covar='scale'")):
            if bool(mask.any()):
                column = int(mask.nonzero()[0, 0])
                name = column_name(rows.names, column)
                warnings.warn(f"column {name} {text}.", UserWarning, stacklevel=5)

    def _refine_start(self, family: Gaussian, params: Params) -> Params:  # type: ignore[override]
        frame, kind = family.frame, self.covariance_type
        params = dict(params)
        if self.weights_init is not None:
            params["weights"] = _tensor(self.weights_init, frame)[None]
        if self.means_init is not None:
            params["means"] = ((_tensor(self.means_init, frame) - frame.shift_D) * frame.scale_D)[None]
        if self.precisions_init is not None:
            root = root_of_precision(kind, _tensor(self.precisions_init, frame))[None]
            params |= _framed(kind, frame, root)
        return params

    def _warm(self, family: Gaussian) -> Params:  # type: ignore[override]
        frame = family.frame
        return {**self._extra(frame.shift_D.device), "weights": _tensor(self.weights_, frame),
                "means": (_tensor(self.means_, frame) - frame.shift_D) * frame.scale_D,
                **_framed(self.covariance_type, frame, _tensor(self.precisions_cholesky_, frame))}

    def _scoring(self, dtype: torch.dtype, device: torch.device) -> tuple[Family, Params]:
        kind = self.covariance_type
        weights_K, means_KD, root = (torch.as_tensor(a).to(device, torch.float64)
                                     for a in (self.weights_, self.means_, self.precisions_cholesky_))
        _K, _D = means_KD.shape
        covariances = inverse_of_root(kind, root[None])
        spread = as_full(kind, covariances, means_KD[None])[0].diagonal(dim1=-2, dim2=-1)
        share_K = weights_K / weights_K.sum()
        mean_D = share_K @ means_KD
        variance_D = share_K @ (spread + (means_KD - mean_D) ** 2)
        frame = Frame.from_moments(mean_D, variance_D, kind, 0.0)
        family = self._make_family(kind, frame, torch.zeros_like(mean_D), dtype, self._fixed())
        return family, self._warm(family)

    def _publish(self, family: Gaussian, params: Params, like: Any) -> None:  # type: ignore[override]
        frame, kind = family.frame, self.covariance_type
        back_D = 1 / frame.scale_D
        root, covariances = params["cholesky"], params["covariances"]
        if kind in ("full", "tied"):
            covariances = covariances * back_D[:, None] * back_D
            root = root * frame.scale_D[:, None]
            precisions = root @ root.mT
        else:
            unit = back_D if kind == "diag" else back_D[0]
            covariances, root = covariances * unit**2, root / unit
            precisions = root**2
        values = {"weights_": params["weights"], "means_": params["means"] * back_D + frame.shift_D,
                  "covariances_": covariances, "precisions_cholesky_": root, "precisions_": precisions}
        for name, value in values.items():
            setattr(self, name, self._emit(value.to(self._dtype).contiguous(), like))

    def _n_parameters(self) -> int:
        K, D = self.means_.shape
        covariances = {"full": K * D * (D + 1) // 2, "diag": K * D, "tied": D * (D + 1) // 2, "spherical": K}
        free = {"covariances": covariances[self.covariance_type], "means": K * D, "weights": K - 1}
        return sum(number for name, number in free.items() if name not in self._fixed())

    def _draw(self, rng: np.random.RandomState, counts_K: np.ndarray) -> np.ndarray:
        means_KD, covariances = (torch.as_tensor(a).cpu().numpy() for a in (self.means_, self.covariances_))
        parts = []
        for k, (mean_D, count) in enumerate(zip(means_KD, counts_K)):
            covariance = covariances if self.covariance_type == "tied" else covariances[k]
            if self.covariance_type in ("full", "tied"):
                parts.append(rng.multivariate_normal(mean_D, covariance, int(count)))
            else:
                parts.append(mean_D + rng.standard_normal(size=(count, len(mean_D))) * np.sqrt(covariance))
        return np.vstack(parts)


def _tensor(value: Any, frame: Frame) -> Tensor:
    return torch.as_tensor(value if isinstance(value, Tensor) else np.array(value)).to(frame.shift_D)


def _framed(kind: str, frame: Frame, root: Tensor) -> Params:
    """Root of the precision and covariances in standardised coordinates, from the root in the data's own."""
    if kind in ("full", "tied"):
        root = root / frame.scale_D[:, None]
    else:
        root = root / (frame.scale_D if kind == "diag" else frame.scale_D[0])
    return {"cholesky": root, "covariances": inverse_of_root(kind, root)}


def _shaped(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    array = check_array(value.cpu().numpy() if isinstance(value, Tensor) else value, dtype=[np.float64, np.float32],
                        ensure_2d=False, allow_nd=True)
    if array.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {array.shape}")
    return array


def _check_weights(weights: Any, components: int) -> None:
    weights_K = _shaped(weights, (components,), "weights")
    if (weights_K < 0).any() or (weights_K > 1).any():
        raise ValueError("The parameter 'weights' should be in the range [0, 1], but got max value "
                         f"{weights_K.max():.5f}, min value {weights_K.min():.5f}")
    if abs(1 - weights_K.sum()) > (1e-6 if weights_K.dtype == np.float32 else 1e-8):
        raise ValueError("The parameter 'weights' should be normalized, but got sum(weights) = "
                         f"{weights_K.sum():.5f}")


def _check_precisions(precisions: Any, kind: str, K: int, D: int) -> None:
    shape = {"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}[kind]
    array = _shaped(precisions, shape, f"{kind} precision")
    if kind in ("diag", "spherical"):
        if (array <= 0).any():
            raise ValueError(f"'{kind} precision' should be positive")
        return
    for matrix in array.reshape(-1, D, D):
        if not (np.allclose(matrix, matrix.T) and (np.linalg.eigvalsh(matrix) > 0).all()):
            raise ValueError(f"'{kind} precision' should be symmetric, positive-definite")
