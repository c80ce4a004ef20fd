"""Gaussian components with conjugate priors on means and covariances, for EM that climbs to the posterior's mode.

D columns, S starts, K components; all in standardised coordinates, in which the prior means are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.density._gaussian import log_diagonal, outer
from mixwell.density.mixtures.em.gaussian import Gaussian, Level
from mixwell.density.mixtures.em.kernels import MATRICES, Moments
from mixwell.density.mixtures.em.loop import Params


class PenalisedGaussian(Gaussian):
    """Prior N(0, S / shrinkage) of a mean, and inverse Wishart of a covariance S with D + 2 degrees of freedom."""

    shrinkage = 0.01  # rows that the prior of a mean is worth
    scale_D: Tensor  # diagonal of the inverse Wishart's scale

    def begin(self, shrinkage: float, components: int) -> None:
        """Set the priors for so many components, each of which has a share of the data's variances."""
        self.shrinkage = shrinkage
        variance_D = self.frame.variance_D * self.frame.scale_D**2
        self.scale_D = variance_D / components ** (2 / self.columns)

    def means_and_covariances(self, weight_SK: Tensor, moments: Moments, params: Params | None,
                              level: Level) -> tuple[Tensor, Tensor]:
        """The mode, from moments with those of the rows that the prior is worth."""
        gap_SKD = torch.zeros_like(moments.first_SKD)
        if params is not None and not level.quadratic:
            gap_SKD = -params["means"]
        more_SK = weight_SK + self.shrinkage
        first_SKD = moments.first_SKD + self.shrinkage * gap_SKD
        second = moments.second + self._second(gap_SKD)
        widened = Moments(more_SK, first_SKD, second)
        means, covariances = super().means_and_covariances(more_SK, widened, params, level)
        added = self._regularisation()
        share = self._rows_of(more_SK) / (self._rows_of(weight_SK) + self._exponent(weight_SK.shape[1]))
        return means, (covariances - added) * share + added

    def _second(self, gap_SKD: Tensor) -> Tensor:
        """What the priors add to the second moments."""
        if self.kind == "spherical":
            return self.shrinkage * (gap_SKD**2).sum(-1) + self.scale_D.sum()
        if self.kind == "diag":
            return self.shrinkage * gap_SKD**2 + self.scale_D
        outer_SKDD = self.shrinkage * outer(gap_SKD, gap_SKD)
        scale_DD = self.scale_D.diag()
        return outer_SKDD + scale_DD if self.kind == "full" else outer_SKDD.sum(1) + scale_DD

    def _regularisation(self) -> Tensor:
        if self.kind in MATRICES:
            return self.regularisation_D.diag()
        return self.regularisation_D.mean() if self.kind == "spherical" else self.regularisation_D

    def _rows_of(self, weight_SK: Tensor) -> Tensor:
        """Rows of a covariance, in its shape; of a spherical one, values a column."""
        if self.kind == "tied":
            return weight_SK.sum(1)[:, None, None]
        places = {"full": 2, "diag": 1, "spherical": 0}[self.kind]
        return weight_SK.reshape(*weight_SK.shape, *[1] * places)

    def _exponent(self, components: int) -> float:
        """Rows that the priors add to a covariance's determinant."""
        D = self.columns
        dof = D + 2
        if self.kind == "tied":
            return dof + D + 1 + components
        if self.kind == "full":
            return dof + D + 2
        return dof + 3 if self.kind == "diag" else (dof + D + 2) / D

    def log_prior(self, params: Params) -> Tensor:
        """Log prior density (S,) of means and covariances, up to a constant, in nats."""
        root, means_SKD = params["cholesky"], params["means"]
        S, K, D = means_SKD.shape
        if self.kind in MATRICES:
            root_SKDD = root if self.kind == "full" else root[:, None]
            white_SKD = (means_SKD[:, :, None] @ root_SKDD)[:, :, 0]
            log_root = log_diagonal(root)
            trace = (root**2 * self.scale_D[:, None]).sum((-2, -1))
        else:
            root_SKD = root if self.kind == "diag" else root[..., None].expand(S, K, D)
            white_SKD = means_SKD * root_SKD
            log_root = root_SKD.log().sum(-1)
            trace = (root_SKD**2 * self.scale_D).sum(-1)
        exponent = self._exponent(K) * (D if self.kind == "spherical" else 1)
        if self.kind == "spherical":
            log_root = log_root / D
        own = (exponent * log_root - 0.5 * trace).reshape(S, -1).sum(1)
        return own - 0.5 * self.shrinkage * (white_SKD**2).sum((1, 2))
