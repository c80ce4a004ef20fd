"""Partial correlations of compositions: how two parts of a whole move together, all others given, for any reference.

**Equation:** clr(x)_i = log x_i - mean_j log x_j; alr(x)_i = log(x_i / x_r); ilr(x) = clr(x) V with orthonormal columns
V that sum to 0. The covariance Gamma of clr is singular; Gamma^+ = V cov(ilr)^-1 V^T is its pseudo-inverse, and its
entries (i, j), i and j other than r, are those of cov(alr)^-1 for every reference r. Hence
r_ij = -Gamma^+_ij / sqrt(Gamma^+_ii Gamma^+_jj), partial variances 1 / Gamma^+_ii, and residuals of log(x_i / x_r) on
all other log-ratios to r, (clr(x) - mean) Gamma^+ / diag(Gamma^+), that do not depend on r.

**Shapes:** x (N, D) positive, rows of any sum; clr (N, D), alr and ilr (N, D - 1), V (D, D - 1).

**Reference:** Erb (2020), Partial Correlations in Compositional Data Analysis, arXiv:1904.09480; Aitchison (1986), The
Statistical Analysis of Compositional Data, for the covariances; Egozcue et al. (2003) for ilr; Martin-Fernandez,
Barcelo-Vidal, Pawlowsky-Glahn (2003) for zeros.

**Differs:** the formulas are derived here from the statements of the abstract. The pseudo-inverse comes from the ilr
covariance instead of a singular value decomposition, so that a covariance of too low a rank is an error. Zeros,
of which the paper does not speak, are refused or replaced.

**Fails when:** parts are few: D independent parts of equal log-variance have 1 / (D - 1), not 0; or rows are at most D.
Replaced zeros are outliers in logarithms.

**Cost:** O(N D^2 + D^3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of partial correlations; `ValueError` for one out of range."""

    zeros: Literal["refuse", "replace"] = "refuse"  # replace: by delta, the row's other parts scaled down to make room
    delta: float | None = None  # share of the whole that a zero becomes, below 1 / D; None: 1 / D^2
    min_condition: float = 1e-12  # smallest ratio of extreme eigenvalues of the log-ratio covariance, 0 or more

    def __post_init__(self) -> None:
        if self.zeros not in ("refuse", "replace"):
            raise ValueError(f"zeros is {self.zeros!r}; expected 'refuse' or 'replace'")
        if self.delta is not None and self.delta <= 0:
            raise ValueError(f"delta is {self.delta}; expected above 0, or None")
        if self.min_condition < 0:
            raise ValueError(f"min_condition is {self.min_condition}; expected at least 0")


class PartialCorrelations(NamedTuple):
    """Between parts, all others given."""

    correlations_DD: Tensor  # -1 to 1, ones on the diagonal
    variances_D: Tensor  # of what the other parts leave of a log-ratio
    precision_DD: Tensor  # Gamma^+


def closed(x_ND: Tensor, config: Config) -> Tensor:
    """Rows scaled to a sum of 1, zeros replaced; `ValueError` for zeros that are refused, and for no compositions."""
    if x_ND.ndim != 2 or x_ND.shape[1] < 2 or not bool(x_ND.isfinite().all()) or bool((x_ND < 0).any()):
        raise ValueError(f"x has shape {tuple(x_ND.shape)}; expected finite rows (N, D) of two or more parts, none "
                         "negative")
    total_N1 = x_ND.sum(1, keepdim=True)
    share_ND = x_ND / total_N1
    zero_ND = x_ND == 0
    if not bool(zero_ND.any()):
        return share_ND
    empty_N = zero_ND.all(1)
    if config.zeros == "refuse" or bool(empty_N.any()):
        row, part = zero_ND.nonzero()[0].tolist()
        raise ValueError(f"x[{row}, {part}] is 0, whose logarithm is not finite ({int(zero_ND.sum())} zeros in all); "
                         "drop or pool the part, or set zeros='replace'; a row of zeros alone cannot be replaced")
    D = x_ND.shape[1]
    delta = D**-2 if config.delta is None else config.delta
    if delta >= 1 / D:
        raise ValueError(f"delta is {delta}; expected below 1 / D = {1 / D:g}")
    zeros_N1 = zero_ND.sum(1, keepdim=True)
    room_N1 = 1 - delta * zeros_N1
    return torch.where(zero_ND, delta, share_ND * room_N1)


def clr(x_ND: Tensor) -> Tensor:
    """Centred log-ratios (N, D) of positive x."""
    log_ND = x_ND.log()
    return log_ND - log_ND.mean(1, keepdim=True)


def alr(x_ND: Tensor, reference: int = -1) -> Tensor:
    """Log-ratios (N, D - 1) of the other parts, in order, to part `reference`."""
    D = x_ND.shape[1]
    others = [d for d in range(D) if d != reference % D]
    return x_ND[:, others].log() - x_ND[:, [reference]].log()


def ilr_basis(parts: int) -> Tensor:
    """V (D, D - 1): column i sets the first i + 1 parts against the next one; float64."""
    V = torch.ones(parts, parts - 1, dtype=torch.float64).triu()
    ahead = torch.arange(1, parts, dtype=torch.float64)
    columns = torch.arange(parts - 1)
    V[columns + 1, columns] = -ahead
    square = ahead * (ahead + 1)
    return V / square.sqrt()


def ilr(x_ND: Tensor) -> Tensor:
    """Isometric log-ratios (N, D - 1) of positive x in the basis of `ilr_basis`."""
    basis = ilr_basis(x_ND.shape[1])
    return clr(x_ND) @ basis.to(x_ND)


def residuals(x_ND: Tensor, precision_DD: Tensor) -> Tensor:
    """What all other parts leave of every part's log-ratio (N, D), the same to any reference."""
    y_ND = clr(x_ND)
    centred_ND = y_ND - y_ND.mean(0)
    return centred_ND @ precision_DD / precision_DD.diagonal()


@method(
    title="Partial correlations of compositions",
    paper="Partial Correlations in Compositional Data Analysis",
    year=2020,
    tags={"value", "differentiable", "float32"},
)
def partial_correlations(x: Tensor, config: Config | None = None) -> PartialCorrelations:
    """Of compositions x (N, D), D at least 3 and N above D; rows may have any sum. Sums are in float64.

    Raises a `ValueError` for other shapes, values that are negative, not finite or zero, or dependent parts.
    """
    config = config or Config()
    x = torch.as_tensor(x)
    share_ND = closed(x.double(), config)
    N, D = share_ND.shape
    if D < 3 or N <= D:
        raise ValueError(f"x has {N} rows of {D} parts; expected three or more parts and more rows than parts")
    covariance = torch.cov(ilr(share_ND).T)
    _check_condition(covariance.detach(), config.min_condition)
    V = ilr_basis(D).to(share_ND)
    within = torch.linalg.solve(covariance, V.T)
    precision_DD = V @ within
    scale_D = precision_DD.diagonal().rsqrt()
    scale_D1 = scale_D[:, None]
    scaled_DD = -precision_DD * scale_D1 * scale_D
    eye = torch.eye(D, dtype=torch.bool, device=x.device)
    correlations_DD = torch.where(eye, 1.0, scaled_DD)
    kind = x.dtype if x.is_floating_point() else torch.float64
    found = (correlations_DD, scale_D.square(), precision_DD)
    return PartialCorrelations(*(value.to(kind) for value in found))


def _check_condition(covariance: Tensor, least: float) -> None:
    values = torch.linalg.eigvalsh(covariance)
    low, high = values[[0, -1]].tolist()
    if not low > least * high:
        raise ValueError(f"the log-ratio covariance has eigenvalues from {low:.3g} to {high:.3g}; some parts are "
                         "functions of others: drop them")


def example(generator: torch.Generator) -> dict[str, Any]:
    """Forty compositions of five parts."""
    logits_ND = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    return {"x": logits_ND.softmax(1)}
