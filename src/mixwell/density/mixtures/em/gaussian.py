"""Gaussian components of the four covariance types, as a family for EM in standardised coordinates.

N rows, B rows of a piece, D columns, S starts, K components; `cholesky` is that of the precision (scikit-learn's
upper-triangular convention: precision = cholesky @ cholesky.T).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.density._covariances import LAYOUTS, as_full, precision_cholesky
from mixwell.density._gaussian import log_positive, outer, symmetric
from mixwell.density.mixtures.em.frame import Frame
from mixwell.density.mixtures.em.kernels import (
    MATRICES,
    WIDEST,
    Centred,
    Moments,
    Quadratic,
    feature_count,
    natural_parameters,
)
from mixwell.density.mixtures.em.loop import Family, Params, Tally, held, with_fixed
from mixwell.density.mixtures.em.missing import Incomplete
from mixwell.density.mixtures.em.models import MODELS, Own
from mixwell.density.mixtures.em.rows import Piece

ILL_DEFINED = ("Fitting the mixture model failed because some components have ill-defined empirical covariance (for "
               "instance caused by singleton or collapsed samples). Try to decrease the number of components, increase "
               "reg_covar, or scale the input data.")
# Largest error of a log density, in nats, that a level may make before the next one takes over.
TOLERATED = {torch.float32: 1e-3, torch.float64: 1e-7}


class Level(NamedTuple):
    """A way to compute a step."""

    quadratic: bool
    dtype: torch.dtype


class Gaussian(Family):
    """EM for Gaussian components: a ladder of kernels, from two float32 products to centred float64 differences."""

    def __init__(self, kind: str, frame: Frame, regularisation_D: Tensor, dtype: torch.dtype,
                 fixed: tuple[str, ...] = ()) -> None:
        self.kind = LAYOUTS[kind]
        self.model = kind
        self.frame = frame
        self.fixed = fixed
        self.columns = len(frame.shift_D)
        self.regularisation_D = regularisation_D * frame.scale_D**2
        self.wide = feature_count(self.kind, self.columns) > WIDEST
        first = Level(not self.wide, dtype)
        second = Level(not self.wide, torch.float64)
        last = Level(False, torch.float64)
        distinct = dict.fromkeys((first, second, last))
        self.ladder = tuple(distinct)

    def online_level(self) -> Level:
        return Level(True, torch.float64)  # moments about zero can be averaged over batches

    def levels(self, params: Params | None) -> tuple[Any, ...]:
        if params is None:
            return Level(True, torch.float64), Level(False, torch.float64)
        for i, level in enumerate(self.ladder):
            if self._accurate(params, level):
                return self.ladder[i:]
        return self.ladder[-1:]

    def trusts(self, params: Params, level: Level) -> bool:
        if level != self.ladder[-1]:
            return self._accurate(params, level)
        finite = params["cholesky"].isfinite()
        return bool(finite.all())

    def refuse(self, params: Params) -> None:
        """`ValueError`: covariances that are no use."""
        raise ValueError(ILL_DEFINED)

    def _accurate(self, params: Params, level: Level) -> bool:
        """Whether rounding stays below what is tolerated; products round in proportion to their coefficients."""
        rounding = torch.finfo(level.dtype).eps / 2
        if level.quadratic:
            squares_SKP = self.natural(params).square()
            size = squares_SKP.sum(-1).sqrt()
        else:
            largest = params["cholesky"].abs().amax()
            size = largest * self.columns
        small = size * rounding < TOLERATED[level.dtype]
        return bool(small.all())

    def natural(self, params: Params) -> Tensor:
        """Coefficients (S, K, P) of the quadratic features."""
        log_weights_SK = self.log_weights(params)
        return natural_parameters(self.kind, log_weights_SK, params["means"], params["cholesky"])

    def log_weights(self, params: Params) -> Tensor:
        """What the E step adds to the log densities of the components (S, K)."""
        return log_positive(params["weights"])

    def kernel(self, params: Params | None, level: Level) -> GaussianKernel:
        return GaussianKernel(self, params, level)

    def maximise(self, tally: Tally, params: Params | None, level: Level) -> Params:
        count_SK, first_SKD, second = tally.statistics
        dead_SK = self.dead(tally)
        n_SK = torch.where(dead_SK, 1.0, count_SK)
        moments = Moments(n_SK, first_SKD, second)
        means, covariances = self.means_and_covariances(n_SK, moments, params, level)
        total_S1 = count_SK.sum(-1, keepdim=True)
        new = {"weights": count_SK / total_S1, "means": means, "covariances": covariances}
        return self.completed(new, params, dead_SK)

    def completed(self, new: Params, params: Params | None, dead_SK: Tensor) -> Params:
        """New parameters with old values where they stay, and with the roots of the precisions."""
        new = self.keep_dead(new, params, dead_SK)
        if self.model in MODELS:
            new |= self._modelled(new, params)
        new = with_fixed(self.fixed, new, params)
        root = precision_cholesky(self.kind, new["covariances"])
        return new | {"cholesky": root}

    def _modelled(self, new: Params, params: Params | None) -> Params:
        """Covariances that share what the model wants shared."""
        old = params or {}
        own = Own(new["covariances"], new["weights"], old.get("covariances"), old.get("orientation"))
        found = MODELS[self.model](own)
        shared = {} if found.orientation_SDD is None else {"orientation": found.orientation_SDD}
        return {"covariances": found.covariances, **shared}

    def dead(self, tally: Tally) -> Tensor:
        """Which components (S, K) no row belongs to."""
        return tally.statistics.count_SK < 1e-30 * tally.weight

    def keep_dead(self, new: Params, params: Params | None, dead_SK: Tensor) -> Params:
        """Old values of all but the weights where a component has no rows; tied covariances are everyone's."""
        if params is None or not bool(dead_SK.any()):
            return new
        kept = dict(new)
        for name, value in new.items():
            shared = self.kind == "tied" and name == "covariances"
            if name != "weights" and not shared:
                kept[name] = torch.where(_like(dead_SK, value), params[name], value)
        return kept

    def means_and_covariances(self, weight_SK: Tensor, moments: Moments, params: Params | None,
                              level: Level) -> tuple[Tensor, Tensor]:
        """From moments about the level's origin: zero, or with centred differences the old means."""
        offset_SKD = moments.first_SKD / weight_SK[..., None]
        origin_SKD = torch.zeros_like(offset_SKD)
        if params is not None and not level.quadratic:
            origin_SKD = params["means"]
        means_SKD = held(self.fixed, "means", origin_SKD + offset_SKD, params)
        moved_SKD = means_SKD - origin_SKD
        return means_SKD, self.covariances(weight_SK, offset_SKD, moved_SKD, moments.second)

    def covariances(self, n_SK: Tensor, offset_SKD: Tensor, moved_SKD: Tensor, second: Tensor) -> Tensor:
        """Regularised second moments about new means that lie `moved` from the origin; the data's own lie `offset`."""
        if self.kind in MATRICES:
            return self._matrices(n_SK, offset_SKD, moved_SKD, second)
        correction_SKD = moved_SKD * (moved_SKD - 2 * offset_SKD)
        if self.kind == "diag":
            variance_SKD = second / n_SK[..., None] + correction_SKD
            return variance_SKD.clamp(min=0) + self.regularisation_D
        total_SK = second / n_SK + correction_SKD.sum(-1)
        variance_SK = total_SK.clamp(min=0) / self.columns
        return variance_SK + self.regularisation_D.mean()

    def _matrices(self, n_SK: Tensor, offset_SKD: Tensor, moved_SKD: Tensor, second: Tensor) -> Tensor:
        n_SK11 = n_SK[..., None, None]
        cross_SKDD = outer(offset_SKD, moved_SKD)
        correction_SKDD = outer(moved_SKD, moved_SKD) - cross_SKDD - cross_SKDD.mT
        if self.kind == "full":
            covariances = second / n_SK11 + correction_SKDD
        else:
            total_SDD = second + (n_SK11 * correction_SKDD).sum(1)
            covariances = total_SDD / n_SK11.sum(1)
        covariances = symmetric(covariances)
        covariances.diagonal(dim1=-2, dim2=-1).add_(self.regularisation_D)
        return covariances


def _like(mask_SK: Tensor, value: Tensor) -> Tensor:
    """A mask of components with as many axes as a parameter."""
    ones = [1] * (value.ndim - 2)
    return mask_SK.view(*mask_SK.shape, *ones)


class GaussianKernel:
    """Joint log densities and moments of pieces, with or without missing values."""

    def __init__(self, family: Gaussian, params: Params | None, level: Level) -> None:
        self.family = family
        self.params = params
        self.level = level
        self.log_scale = float(family.frame.scale_D.log().sum())  # densities are in the data's own units
        # the step that makes a start is quadratic unless the features are too many: it has no means to subtract
        quadratic = not family.wide if params is None else level.quadratic
        self.dense: Any = self._quadratic() if quadratic else self._centred()

    def _quadratic(self) -> Quadratic:
        family, params = self.family, self.params
        shift_D, scale_D, _ = family.frame
        if params is None:
            return Quadratic(family.kind, shift_D, scale_D, self.level.dtype)
        natural_SKP = family.natural(params)
        natural_SKP[..., 0] += self.log_scale
        root = params["cholesky"] if family.kind == "tied" else None
        return Quadratic(family.kind, shift_D, scale_D, self.level.dtype, natural_SKP, root)

    def _centred(self) -> Centred:
        family, params = self.family, self.params
        shift_D, scale_D, _ = family.frame
        if params is None:  # one component at the origin: its moments are those about zero
            params = self._one_at_the_origin()
        means_SKD, root = params["means"], params["cholesky"]
        log_weights_SK = self.log_scale + family.log_weights(params)
        return Centred(family.kind, shift_D, scale_D, self.level.dtype, log_weights_SK, means_SKD, root)

    def _one_at_the_origin(self) -> Params:
        ones_1D = torch.ones_like(self.family.frame.shift_D)[None]
        unit_1DD = torch.diag_embed(ones_1D)
        one_11 = ones_1D[:, :1]
        roots = {"full": unit_1DD[None], "tied": unit_1DD, "diag": ones_1D[None], "spherical": one_11}
        means_11D = torch.zeros_like(ones_1D)[None]
        root = roots[self.family.kind]
        return {"weights": one_11, "log_weights": one_11.log(), "means": means_11D, "cholesky": root}

    def rows(self, starts_times_components: int) -> int:
        """Rows of a piece."""
        in_memory = (1 << 23) // (starts_times_components * self.family.columns)
        return min(self.dense.rows(starts_times_components), max(16, in_memory))

    def state(self, piece: Piece) -> Any:
        """What `tally` needs of a piece when the responsibilities are given."""
        if piece.observed_PD is None:
            return self.dense.features(piece.x_BD)
        assert self.params is not None
        shift_D, scale_D, _ = self.family.frame
        weights_SK, means_SKD = self.params["weights"], self.params["means"]
        z_BD = (piece.x_BD.double() - shift_D) * scale_D
        observed_PD = piece.observed_PD.to(z_BD.device)
        covariances = as_full(self.family.kind, self.params["covariances"], means_SKD)
        return Incomplete(z_BD, observed_PD, weights_SK, means_SKD, covariances, scale_D.log())

    def joint(self, piece: Piece) -> tuple[Any, Tensor]:
        """State for `tally`, and log weights plus log densities in the data's own units (S, K, B)."""
        state = self.state(piece)
        if isinstance(state, Incomplete):
            return state, state.peak_SKB - 0.5 * state.distance_SKB
        return state, self.dense.joint(state)

    def tally(self, state: Any, resp_SKB: Tensor) -> Moments:
        """Moments about zero (quadratic) or about the means (centred)."""
        if not isinstance(state, Incomplete):
            return self.dense.moments(state, resp_SKB)
        return state.moments(resp_SKB, resp_SKB, self.family.kind, about_zero=self.level.quadratic)
