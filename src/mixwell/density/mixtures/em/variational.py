"""Gaussian components with priors on weights, means and precisions, as a family for variational EM.

S starts, K components, D columns. Everything about priors and posteriors is in the data's own units.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.density._covariances import inverse_of_root, precision_cholesky
from mixwell.density._gaussian import log_diagonal, outer
from mixwell.density.mixtures.em.frame import Frame
from mixwell.density.mixtures.em.gaussian import Gaussian, GaussianKernel, Level
from mixwell.density.mixtures.em.kernels import MATRICES, Moments
from mixwell.density.mixtures.em.loop import Params, Tally


class Prior(NamedTuple):
    """Parameters of the priors."""

    sticks: bool  # a Dirichlet process, by breaking sticks; else a Dirichlet distribution
    concentration: float
    mean_precision: float
    mean_D: Tensor
    dofs: float
    covariance: Tensor  # (D, D), (D,) or () by the type of covariances


class Sums(NamedTuple):
    """Moments, and the entropy of the responsibilities (S,)."""

    count_SK: Tensor
    first_SKD: Tensor
    second: Tensor
    entropy_S: Tensor


class VariationalKernel(GaussianKernel):
    """A kernel that sums up the entropy of the responsibilities, too."""

    def tally(self, state: Any, resp_SKB: Tensor) -> Sums:  # type: ignore[override]
        """Moments and entropy of responsibilities that may be multiplied by the rows' weights."""
        moments = super().tally(state, resp_SKB)
        wide_SKB = resp_SKB.double()
        weight_S1B = wide_SKB.sum(1, keepdim=True)
        own_SKB = torch.xlogy(wide_SKB, wide_SKB)
        of_weight_SB = torch.xlogy(weight_S1B, weight_S1B)[:, 0]
        entropy_SB = of_weight_SB - own_SKB.sum(1)
        return Sums(*moments, entropy_SB.sum(1))


class Variational(Gaussian):
    """The E step by expected log densities, the M step by conjugate posteriors; `bound` is the evidence's."""

    def __init__(self, kind: str, frame: Frame, regularisation_D: Tensor, prior: Prior) -> None:
        super().__init__(kind, frame, regularisation_D, torch.float64)
        self.prior = prior

    def log_weights(self, params: Params) -> Tensor:
        """Expected logarithms of the weights, with what the precisions' doubt adds (S, K)."""
        return params["log_weights"]

    def kernel(self, params: Params | None, level: Level) -> VariationalKernel:
        return VariationalKernel(self, params, level)

    def maximise(self, tally: Tally, params: Params | None, level: Level) -> Params:
        count_SK, first_SKD, second, entropy_S = tally.statistics
        n_SK = torch.where(self.dead(tally), 1.0, count_SK)
        moments = Moments(n_SK, first_SKD, second)
        own_SKD, scatter = self.means_and_covariances(n_SK, moments, params, level)
        shift_D, scale_D, _ = self.frame
        back_D = 1 / scale_D
        means_SKD = own_SKD * back_D + shift_D
        spread = _rescaled(self.kind, scatter, back_D)
        prior = self.prior
        covariances = posterior_covariances(self.kind, prior, count_SK, means_SKD, spread)
        precision_SK1 = self.mean_precisions(count_SK)[..., None]
        sums_SKD = count_SK[..., None] * means_SKD
        pulled_SKD = prior.mean_precision * prior.mean_D + sums_SKD
        new = self.completed_posterior(count_SK, pulled_SKD / precision_SK1, covariances)
        return new | {"bound": entropy_S - self.cost(new)}

    def mean_precisions(self, count_SK: Tensor) -> Tensor:
        """How many rows the posterior of every mean is worth (S, K)."""
        return self.prior.mean_precision + count_SK

    def dofs(self, count_SK: Tensor) -> Tensor:
        """Degrees of freedom of the precisions (S, K)."""
        return posterior_dofs(self.kind, self.prior, count_SK)

    def completed_posterior(self, count_SK: Tensor, means_SKD: Tensor, covariances: Tensor) -> Params:
        """Parameters in the frame's coordinates from means and covariances in the data's units."""
        frame = self.frame
        root = precision_cholesky(self.kind, covariances)
        log_share_SK, share_SK = shares(self.prior, count_SK)
        dofs_SK = self.dofs(count_SK)
        doubt_SK = self.columns / self.mean_precisions(count_SK)
        spread_SK = self._log_precision(dofs_SK) - doubt_SK
        log_weights_SK = log_share_SK + 0.5 * spread_SK
        framed = _rescaled_root(self.kind, root, 1 / frame.scale_D)
        moved_SKD = (means_SKD - frame.shift_D) * frame.scale_D
        return {"weights": share_SK, "log_weights": log_weights_SK, "count": count_SK, "means": moved_SKD,
                "cholesky": framed, "covariances": inverse_of_root(self.kind, framed)}

    def _log_precision(self, dofs_SK: Tensor) -> Tensor:
        """Expected log determinant of a precision whose mean is the unit matrix (S, K)."""
        halves_SKD = self._halves(dofs_SK)
        expected_SK = halves_SKD.digamma().sum(-1)
        return expected_SK + self.columns * (math.log(2) - dofs_SK.log())

    def _halves(self, dofs_SK: Tensor) -> Tensor:
        """(nu - d) / 2 of every column (S, K, D)."""
        column_D = torch.arange(self.columns).to(dofs_SK)
        return 0.5 * (dofs_SK[..., None] - column_D)

    def cost(self, params: Params) -> Tensor:
        """What the posteriors' departure from the priors takes from the bound, but for constants (S,)."""
        count_SK = params["count"]
        log_beta_SK = self.mean_precisions(count_SK).log()
        of_means_S = 0.5 * self.columns * log_beta_SK.sum(1)
        of_weights_S = log_norm_of_shares(self.prior, count_SK)
        return self._log_norm(params).sum(1) + of_weights_S + of_means_S

    def _log_norm(self, params: Params) -> Tensor:
        """Logarithms of the Wishart distributions' constants (S, K)."""
        dofs_SK = self.dofs(params["count"])
        root = _rescaled_root(self.kind, params["cholesky"], self.frame.scale_D)
        log_root_SK = _log_determinant(self.kind, root, self.columns).expand_as(dofs_SK)
        log_size_SK = log_root_SK - 0.5 * self.columns * (dofs_SK / 2).log()
        log_gamma_SK = self._halves(dofs_SK).lgamma().sum(-1)
        return -dofs_SK * log_size_SK - log_gamma_SK


def posterior_dofs(kind: str, prior: Prior, count_SK: Tensor) -> Tensor:
    """Degrees of freedom (S, K); a tied covariance gets each component's share of the rows."""
    if kind == "tied":
        count_SK = count_SK.mean(1, keepdim=True).expand_as(count_SK)
    return prior.dofs + count_SK


def posterior_covariances(kind: str, prior: Prior, count_SK: Tensor, means_SKD: Tensor, spread: Tensor) -> Tensor:
    """Inverses of the expected precisions, from the rows' own means and covariances."""
    dofs_SK = posterior_dofs(kind, prior, count_SK)
    shrinkage_SK = prior.mean_precision / (prior.mean_precision + count_SK)
    pull_SK = count_SK * shrinkage_SK
    away_SKD = means_SKD - prior.mean_D
    if kind in MATRICES:
        squares_SKDD = outer(away_SKD, away_SKD)
        pulled_SKDD = pull_SK[..., None, None] * squares_SKDD
        if kind == "tied":
            share_S11 = count_SK.mean(1)[:, None, None]
            own_SDD = spread * share_S11 + pulled_SKDD.mean(1)
            return (prior.covariance + own_SDD) / dofs_SK[:, :1, None]
        own_SKDD = spread * count_SK[..., None, None] + pulled_SKDD
        return (prior.covariance + own_SKDD) / dofs_SK[..., None, None]
    if kind == "spherical":
        squares_SK = away_SKD.square().mean(-1)
        own_SK = count_SK * spread + pull_SK * squares_SK
        return (prior.covariance + own_SK) / dofs_SK
    pulled_SKD = pull_SK[..., None] * away_SKD.square()
    own_SKD = count_SK[..., None] * spread + pulled_SKD
    return (prior.covariance + own_SKD) / dofs_SK[..., None]


def concentrations(prior: Prior, count_SK: Tensor) -> tuple[Tensor, Tensor]:
    """Both parameters (S, K) of the beta distributions by which sticks are broken."""
    backwards_SK = count_SK.flip(1)
    later_SK = _before(backwards_SK).flip(1)
    leave_SK = prior.concentration + later_SK
    return 1 + count_SK, leave_SK


def shares(prior: Prior, count_SK: Tensor) -> tuple[Tensor, Tensor]:
    """Expected logarithms of the weights, and the weights expected (S, K)."""
    if not prior.sticks:
        alpha_SK = prior.concentration + count_SK
        total_S1 = alpha_SK.sum(1, keepdim=True)
        return alpha_SK.digamma() - total_S1.digamma(), alpha_SK / total_S1
    take_SK, leave_SK = concentrations(prior, count_SK)
    whole_SK = take_SK + leave_SK
    log_whole_SK = whole_SK.digamma()
    log_left_SK = _before(leave_SK.digamma() - log_whole_SK)
    rest_SK = leave_SK / whole_SK
    left_SK = _before(rest_SK.log()).exp()
    broken_SK = left_SK * take_SK / whole_SK
    log_take_SK = take_SK.digamma() - log_whole_SK
    total_S1 = broken_SK.sum(1, keepdim=True)
    return log_take_SK + log_left_SK, broken_SK / total_S1


def _before(value_SK: Tensor) -> Tensor:
    """Sums over the components before each."""
    sums_SK = value_SK.cumsum(1)
    nothing_S1 = torch.zeros_like(sums_SK[:, :1])
    return torch.cat([nothing_S1, sums_SK[:, :-1]], 1)


def log_norm_of_shares(prior: Prior, count_SK: Tensor) -> Tensor:
    """Logarithms of the constants of the weights' posteriors (S,)."""
    if prior.sticks:
        take_SK, leave_SK = concentrations(prior, count_SK)
        whole_SK = take_SK + leave_SK
        log_beta_SK = take_SK.lgamma() + leave_SK.lgamma() - whole_SK.lgamma()
        return -log_beta_SK.sum(1)
    alpha_SK = prior.concentration + count_SK
    return alpha_SK.sum(1).lgamma() - alpha_SK.lgamma().sum(1)


def _rescaled(kind: str, covariances: Tensor, scale_D: Tensor) -> Tensor:
    """Covariances of columns multiplied by numbers."""
    if kind in MATRICES:
        return covariances * outer(scale_D, scale_D)
    return covariances * (scale_D if kind == "diag" else scale_D[0]).square()


def _rescaled_root(kind: str, root: Tensor, scale_D: Tensor) -> Tensor:
    """Roots of precisions of columns divided by numbers."""
    if kind in MATRICES:
        return root * scale_D[:, None]
    return root * (scale_D if kind == "diag" else scale_D[0])


def _log_determinant(kind: str, root: Tensor, columns: int) -> Tensor:
    """Log determinants of roots, (S, K), or of tied ones (S, 1)."""
    if kind == "full":
        return log_diagonal(root)
    if kind == "tied":
        return log_diagonal(root)[:, None]
    log_root = root.log()
    return log_root.sum(-1) if kind == "diag" else columns * log_root
