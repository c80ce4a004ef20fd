"""Gaussian components of the four covariance types, as a family for EM in standardised coordinates.

N rows, B rows of a piece, D columns, S starts, K components; `cholesky` is that of the precision (scikit-learn's
upper-triangular convention: precision = cholesky @ cholesky.T).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.density._covariances import as_full, precision_cholesky
from mixwell.density._gaussian import log_positive, outer, symmetric
from mixwell.density.mixtures.em.kernels import WIDEST, Centred, Moments, Quadratic, feature_count, natural_parameters
from mixwell.density.mixtures.em.loop import Family, Params, Tally
from mixwell.density.mixtures.em.missing import Incomplete
from mixwell.density.mixtures.em.rows import Piece, Rows

KINDS = ("full", "tied", "diag", "spherical")
ILL_DEFINED = ("Fitting the mixture model failed because some components have ill-defined empirical covariance (for "
               "instance caused by singleton or collapsed samples). Try to decrease the number of components, increase "
               "reg_covar, or scale the input data.")
# Largest error of a log density, in nats, that a level may make before the next one takes over.
TOLERATED = {torch.float32: 1e-3, torch.float64: 1e-7}


class Level(NamedTuple):
    """A way to compute a step."""

    quadratic: bool
    dtype: torch.dtype


def _sums(x_BD: Tensor, weight_B1: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of the observed values of every column, and their weighted sums and squares."""
    seen_BD = ~torch.isnan(x_BD) if bool(torch.isnan(x_BD.sum())) else None
    weight_BD = torch.ones_like(x_BD[:, :1]) if weight_B1 is None else weight_B1
    if seen_BD is not None:
        x_BD, weight_BD = torch.where(seen_BD, x_BD, 0.0), seen_BD * weight_BD
    weighted_BD = x_BD if weight_B1 is None else x_BD * weight_BD  # missing values are zeros here
    return weight_BD.sum(0).expand(x_BD.shape[1]), weighted_BD.sum(0), (weighted_BD * x_BD).sum(0)


def _moments(count_D: Tensor, first_D: Tensor, second_D: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance from sums; a variance that is rounding alone is zero."""
    mean, square = (total / count_D.clamp(min=1e-300) for total in (first_D, second_D))
    variance = (square - mean**2).clamp(min=0)
    return mean, torch.where(variance <= 1e-14 * square, 0.0, variance)


class Frame(NamedTuple):
    """Standardised coordinates `z = (x - shift) * scale`; scales are powers of two, so that they round nothing."""

    shift_D: Tensor
    scale_D: Tensor
    variance_D: Tensor  # of the data, in their own units

    @classmethod
    def of(cls, rows: Rows, weights_N: Tensor | None, kind: str, floor: float, whole: bool = False) -> Frame:
        """Mean and spread of the observed values; one spread for all columns where components are spherical.

        Of a stream the first rows do, unless the `whole` is asked for or a column hardly varies in them: only the
        conditioning depends on it.
        """
        sums = [torch.zeros(rows.n_columns, dtype=torch.float64, device=rows.device)] * 3
        origin = None
        for start, chunk in rows.chunks():
            for part in chunk.split(1 << 16):
                w = None if weights_N is None else weights_N[start : start + len(part), None]
                if origin is None:
                    count, first, _ = _sums(part.double(), w)
                    origin = rows.processes.first(first / count.clamp(min=1e-300))
                start += len(part)
                sums = [a + b for a, b in zip(sums, _sums(part.double() - origin, w))]
            if rows.streamed and not whole and float(sums[0].min()) >= 1 << 16 and bool(
                    (_moments(*sums)[1] > floor).all()):
                break
        assert origin is not None
        mean, variance = _moments(*rows.processes.total(sums))
        return cls.from_moments(mean + origin, variance, kind, floor)

    @classmethod
    def from_moments(cls, mean_D: Tensor, variance_D: Tensor, kind: str, floor: float) -> Frame:
        """A frame from the data's mean and variance."""
        spread = variance_D.mean().expand_as(variance_D) if kind == "spherical" else variance_D
        spread = spread + max(floor, 1e-300)
        scale = torch.exp2(-torch.round(0.5 * torch.log2(spread)))
        shift = mean_D.float().double()  # a short number, which differences with float32 rows keep exact
        return cls(torch.where(shift.isfinite(), shift, mean_D), scale, variance_D)


class Gaussian(Family):
    """EM for Gaussian components: a ladder of kernels, from two float32 products to centred float64 differences."""

    def __init__(self, kind: str, frame: Frame, regularisation_D: Tensor, dtype: torch.dtype,
                 fixed: tuple[str, ...] = ()) -> None:
        self.kind, self.frame, self.fixed = kind, frame, fixed
        self.regularisation_D = regularisation_D * frame.scale_D**2
        self.wide = feature_count(kind, len(frame.shift_D)) > WIDEST
        quadratic = not self.wide
        ladder = [Level(quadratic, dtype), Level(quadratic, torch.float64), Level(False, torch.float64)]
        self.ladder = tuple(dict.fromkeys(ladder))

    def online_level(self) -> Level:
        return Level(True, torch.float64)  # moments about zero can be averaged over batches

    def levels(self, params: Params | None) -> tuple[Level, ...]:
        if params is None:
            return Level(True, torch.float64), Level(False, torch.float64)
        first = next((i for i, level in enumerate(self.ladder) if self._accurate(params, level)), len(self.ladder) - 1)
        return self.ladder[first:]

    def trusts(self, params: Params, level: Level) -> bool:
        if level == self.ladder[-1]:
            return bool(params["cholesky"].isfinite().all())
        return self._accurate(params, level)

    def refuse(self, params: Params) -> None:
        raise ValueError(ILL_DEFINED)

    def _accurate(self, params: Params, level: Level) -> bool:
        rounding = torch.finfo(level.dtype).eps / 2
        if level.quadratic:
            size = self._natural(params).square().sum(-1).sqrt()
        else:
            size = params["cholesky"].abs().amax() * len(self.frame.shift_D)
        return bool((size * rounding < TOLERATED[level.dtype]).all())

    def _natural(self, params: Params) -> Tensor:
        return natural_parameters(self.kind, log_positive(params["weights"]), params["means"], params["cholesky"])

    def kernel(self, params: Params | None, level: Level) -> GaussianKernel:
        return GaussianKernel(self, params, level)

    def maximise(self, tally: Tally, params: Params | None, level: Level) -> Params:
        count, first, second = tally.statistics
        origin = torch.zeros_like(first) if level.quadratic or params is None else params["means"]
        dead = count < 1e-30 * tally.weight
        n = torch.where(dead, 1.0, count)
        offset = first / n[..., None]
        means = params["means"] if params is not None and "means" in self.fixed else origin + offset
        covariances = self._covariances(n, offset, means - origin, second, tally.weight)
        if params is not None and bool(dead.any()):
            means = torch.where(dead[..., None], params["means"], means)
            if self.kind != "tied":
                mask = dead.view(*dead.shape, *[1] * (covariances.ndim - 2))
                covariances = torch.where(mask, params["covariances"], covariances)
        new = {"weights": count / count.sum(-1, keepdim=True), "means": means, "covariances": covariances}
        new |= {name: params[name] for name in self.fixed if params is not None}
        return new | {"cholesky": precision_cholesky(self.kind, new["covariances"])}

    def _covariances(self, n_SK: Tensor, offset: Tensor, moved: Tensor, second: Tensor, weight: Tensor) -> Tensor:
        """Second moments about the new means, which lie `moved` from the origin; the data's own lie `offset`."""
        if self.kind in ("full", "tied"):
            cross = outer(offset, moved)
            correction = outer(moved, moved) - cross - cross.mT
            if self.kind == "full":
                covariances = second / n_SK[..., None, None] + correction
            else:
                covariances = (second + (n_SK[..., None, None] * correction).sum(1)) / n_SK.sum(-1)[:, None, None]
            covariances = symmetric(covariances)
            covariances.diagonal(dim1=-2, dim2=-1).add_(self.regularisation_D)
            return covariances
        correction = moved * (moved - 2 * offset)
        if self.kind == "spherical":
            variance_SK = (second / n_SK + correction.sum(-1)).clamp(min=0) / len(self.regularisation_D)
            return variance_SK + self.regularisation_D.mean()
        return (second / n_SK[..., None] + correction).clamp(min=0) + self.regularisation_D


class GaussianKernel:
    """Joint log densities and moments of pieces, with or without missing values."""

    def __init__(self, family: Gaussian, params: Params | None, level: Level) -> None:
        self.family, self.params, self.level = family, params, level
        frame, kind = family.frame, family.kind
        self.log_scale = float(frame.scale_D.log().sum())  # densities are in the data's own units
        if params is None and family.wide:
            zero_D, one = torch.zeros_like(frame.shift_D), torch.ones_like(frame.shift_D[:1])
            self.dense: Any = Centred(kind, frame.shift_D, frame.scale_D, level.dtype, one[None], zero_D[None, None],
                                      torch.eye(len(zero_D)).to(zero_D)[None])
        elif level.quadratic or params is None:
            root = params["cholesky"] if params is not None and kind == "tied" else None
            natural = None if params is None else family._natural(params)
            if natural is not None:
                natural[..., 0] += self.log_scale
            self.dense = Quadratic(kind, frame.shift_D, frame.scale_D, level.dtype, natural, root)
        else:
            self.dense = Centred(kind, frame.shift_D, frame.scale_D, level.dtype, self.log_scale
                                 + log_positive(params["weights"]), params["means"], params["cholesky"])

    def rows(self, starts_times_components: int) -> int:
        """Rows of a piece."""
        columns = len(self.family.frame.shift_D)
        return min(self.dense.rows(starts_times_components), max(16, (1 << 23) // (starts_times_components * columns)))

    def state(self, piece: Piece) -> Any:
        """What `tally` needs of a piece when the responsibilities are given."""
        if piece.observed_PD is None:
            return self.dense.features(piece.x_BD)
        assert self.params is not None
        frame, kind, params = self.family.frame, self.family.kind, self.params
        z_BD = (piece.x_BD.double() - frame.shift_D) * frame.scale_D
        return Incomplete(z_BD, piece.observed_PD.to(z_BD.device), params["weights"], params["means"],
                          as_full(kind, params["covariances"], params["means"]), frame.scale_D.log())

    def joint(self, piece: Piece) -> tuple[Any, Tensor]:
        """State for `tally`, and log weights plus log densities in the data's own units (S, K, B)."""
        state = self.state(piece)
        if isinstance(state, Incomplete):
            return state, state.peak_SKB - 0.5 * state.distance_SKB
        return state, self.dense.joint(state)

    def tally(self, state: Any, resp_SKB: Tensor) -> Moments:
        """Moments about zero (quadratic) or about the means (centred)."""
        if isinstance(state, Incomplete):
            return state.moments(resp_SKB, resp_SKB, self.family.kind, about_zero=self.level.quadratic)
        return self.dense.moments(state, resp_SKB)
