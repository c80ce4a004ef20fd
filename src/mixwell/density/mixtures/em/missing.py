"""Gaussian components and rows that lack values, for many patterns of missing values at once.

With o observed and m missing: log N(z_o; mu_o, S_oo), E[z_m | z_o] = mu_m + R (z_o - mu_o), R = S_mo S_oo^-1, and
Cov[z_m | z_o] = S_mm - R S_om. Matrices keep their full size, with those of an identity in the place of what is
missing, so that patterns with different columns are one batch.

P patterns, R rows of each, B = P R, D columns, S starts, K components.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.density._covariances import precision_cholesky, squeezed
from mixwell.density._gaussian import LOG_2PI, log_diagonal, log_positive, outer
from mixwell.density.mixtures.em.kernels import Moments


class Incomplete:
    """Densities of what is there, expected moments of what is not.

    `peak_SKB` is the log weight plus the log density of the observed values at the mean, `distance_SKB` their squared
    distance from it, `columns_B` their number.
    """

    def __init__(self, z_BD: Tensor, observed_PD: Tensor, weights_SK: Tensor, means_SKD: Tensor,
                 covariances_SKDD: Tensor, log_scale_D: Tensor) -> None:
        self.means_SKD = means_SKD
        self.covariances_SKDD = covariances_SKDD
        self.seen_PD = observed_PD.to(z_BD.dtype)
        seen_PDD = outer(self.seen_PD, self.seen_PD)
        self.seen_PSKDD = seen_PDD[:, None, None]
        self.root_PSKDD = self._roots()
        self.diff_PSKRD = self._differences(z_BD)
        white_PSKRD = self.diff_PSKRD @ self.root_PSKDD
        distance_PSKR = white_PSKRD.square().sum(-1)
        peak_PSK1 = self._peaks(weights_SK, log_scale_D)[..., None]
        self.distance_SKB = _by_row(distance_PSKR)
        self.peak_SKB = _by_row(peak_PSK1.expand_as(distance_PSKR))
        rows = distance_PSKR.shape[-1]
        columns_P = self.seen_PD.sum(1)
        self.columns_B = columns_P.repeat_interleave(rows)

    def _roots(self) -> Tensor:
        """Roots (P, S, K, D, D) of the precisions of what was observed, ones on the diagonal elsewhere."""
        lost_PDD = torch.diag_embed(1 - self.seen_PD)
        observed_PSKDD = self.covariances_SKDD * self.seen_PSKDD + lost_PDD[:, None, None]
        return precision_cholesky("full", observed_PSKDD)

    def _differences(self, z_BD: Tensor) -> Tensor:
        """Rows less means (P, S, K, R, D), zeros where a value is missing."""
        P, D = self.seen_PD.shape
        z_PRD = torch.nan_to_num(z_BD).view(P, -1, D)
        z_P11RD = z_PRD[:, None, None]
        means_SK1D = self.means_SKD[:, :, None]
        seen_P111D = self.seen_PD[:, None, None, None]
        return (z_P11RD - means_SK1D) * seen_P111D

    def _peaks(self, weights_SK: Tensor, log_scale_D: Tensor) -> Tensor:
        """Log weight plus log density at the mean (P, S, K), in the data's own units."""
        columns_P = self.seen_PD.sum(1)
        scale_P = self.seen_PD @ log_scale_D
        units_P = scale_P - 0.5 * LOG_2PI * columns_P
        log_root_PSK = log_diagonal(self.root_PSKDD)
        log_peak_PSK = log_positive(weights_SK) + log_root_PSK
        return log_peak_PSK + units_P[:, None, None]

    def moments(self, weight_SKB: Tensor, spread_SKB: Tensor, kind: str, about_zero: bool) -> Moments:
        """Expected moments of whole rows, weighted by `weight_SKB`; the missing values' own spread by `spread_SKB`."""
        P = len(self.seen_PD)
        weight_PSKR = _by_pattern(weight_SKB, P)
        spread_PSK = _by_pattern(spread_SKB, P).sum(-1)
        seen_first_PSK1D = weight_PSKR[..., None, :] @ self.diff_PSKRD
        weighted_PSKRD = self.diff_PSKRD * weight_PSKR[..., None]
        seen_second_PSKDD = weighted_PSKRD.mT @ self.diff_PSKRD
        lift_PSKDD, left_PSKDD = self._completion()
        first_PSKD1 = lift_PSKDD @ seen_first_PSK1D[..., 0, :, None]
        first_SKD = first_PSKD1[..., 0].sum(0)
        second_PSKDD = lift_PSKDD @ seen_second_PSKDD @ lift_PSKDD.mT
        own_PSKDD = spread_PSK[..., None, None] * left_PSKDD
        second_SKDD = (second_PSKDD + own_PSKDD).sum(0)
        count_SK = weight_SKB.sum(-1)
        if about_zero:
            first_SKD, second_SKDD = moved(count_SK, first_SKD, second_SKDD, self.means_SKD)
        return Moments(count_SK, first_SKD, squeezed(kind, second_SKDD))

    def _completion(self) -> tuple[Tensor, Tensor]:
        """What makes whole rows of observed ones, and the covariances of what that leaves (both P, S, K, D, D)."""
        lost_PD = 1 - self.seen_PD
        lost_P11D1 = lost_PD[:, None, None, :, None]
        whole_PSKDD = self.root_PSKDD @ self.root_PSKDD.mT
        precision_PSKDD = whole_PSKDD * self.seen_PSKDD
        slope_PSKDD = self.covariances_SKDD @ precision_PSKDD
        itself_PDD = torch.diag_embed(self.seen_PD)
        lift_PSKDD = slope_PSKDD * lost_P11D1 + itself_PDD[:, None, None]
        known_PSKDD = slope_PSKDD @ self.covariances_SKDD
        rest_PSKDD = self.covariances_SKDD - known_PSKDD
        return lift_PSKDD, rest_PSKDD * lost_P11D1 * lost_P11D1.mT


def moved(count_SK: Tensor, first_SKD: Tensor, second_SKDD: Tensor, shift_SKD: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moments about an origin that lies `shift_SKD` the other way."""
    cross_SKDD = outer(shift_SKD, first_SKD)
    squares_SKDD = outer(shift_SKD, shift_SKD)
    own_SKDD = count_SK[..., None, None] * squares_SKDD
    second_SKDD = second_SKDD + cross_SKDD + cross_SKDD.mT + own_SKDD
    first_SKD = first_SKD + count_SK[..., None] * shift_SKD
    return first_SKD, second_SKDD


def _by_row(value_PSKR: Tensor) -> Tensor:
    value_SKPR = value_PSKR.permute(1, 2, 0, 3)
    return value_SKPR.flatten(2)


def _by_pattern(value_SKB: Tensor, patterns: int) -> Tensor:
    value_SKPR = value_SKB.double().unflatten(2, (patterns, -1))
    return value_SKPR.permute(2, 0, 1, 3)
