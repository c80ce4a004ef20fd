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
        P, D = observed_PD.shape
        self.means_SKD, self.covariances_SKDD = means_SKD, covariances_SKDD
        self.seen_PD = observed_PD.to(z_BD.dtype)
        both_PDD = outer(self.seen_PD, self.seen_PD)
        lost_PDD = torch.diag_embed(1 - self.seen_PD)
        root_PSKDD = precision_cholesky("full", covariances_SKDD * both_PDD[:, None, None] + lost_PDD[:, None, None])
        self.root_PSKDD, self.both_PDD = root_PSKDD, both_PDD
        z_PRD = torch.nan_to_num(z_BD).view(P, -1, D)
        self.diff_PSKRD = (z_PRD[:, None, None] - means_SKD[:, :, None]) * self.seen_PD[:, None, None, None]
        self.distance_SKB = _by_row((self.diff_PSKRD @ root_PSKDD).square().sum(-1))
        columns_P = self.seen_PD.sum(1)
        peak_PSK = (log_positive(weights_SK) + log_diagonal(root_PSKDD)
                    + (self.seen_PD @ log_scale_D - 0.5 * LOG_2PI * columns_P)[:, None, None])
        self.peak_SKB = _by_row(peak_PSK[..., None].expand(self.diff_PSKRD.shape[:-1]))
        self.columns_B = columns_P.repeat_interleave(z_PRD.shape[1])

    def moments(self, weight_SKB: Tensor, spread_SKB: Tensor, kind: str, about_zero: bool) -> Moments:
        """Expected moments of whole rows, weighted by `weight_SKB`; the missing values' own spread by `spread_SKB`."""
        P = len(self.seen_PD)
        weight_PSKR, spread_PSK = _by_pattern(weight_SKB, P), _by_pattern(spread_SKB, P).sum(-1)
        first_PSKD = (weight_PSKR[..., None, :] @ self.diff_PSKRD)[..., 0, :]
        second_PSKDD = (self.diff_PSKRD * weight_PSKR[..., None]).mT @ self.diff_PSKRD
        precision_PSKDD = (self.root_PSKDD @ self.root_PSKDD.mT) * self.both_PDD[:, None, None]
        slope_PSKDD = self.covariances_SKDD @ precision_PSKDD
        lost_P11D1 = (1 - self.seen_PD)[:, None, None, :, None]
        lift_PSKDD = slope_PSKDD * lost_P11D1 + torch.diag_embed(self.seen_PD)[:, None, None]
        spread_PSKDD = (self.covariances_SKDD - slope_PSKDD @ self.covariances_SKDD) * lost_P11D1 * lost_P11D1.mT
        count_SK = weight_SKB.sum(-1)
        first_SKD = (lift_PSKDD @ first_PSKD[..., None])[..., 0].sum(0)
        second_SKDD = (lift_PSKDD @ second_PSKDD @ lift_PSKDD.mT + spread_PSK[..., None, None] * spread_PSKDD).sum(0)
        if about_zero:
            shift = self.means_SKD
            cross = outer(shift, first_SKD)
            second_SKDD = (second_SKDD + cross + cross.mT
                           + count_SK[..., None, None] * outer(shift, shift))
            first_SKD = first_SKD + count_SK[..., None] * shift
        return Moments(count_SK, first_SKD, squeezed(kind, second_SKDD))


def _by_row(value_PSKR: Tensor) -> Tensor:
    return value_PSKR.permute(1, 2, 0, 3).flatten(2)


def _by_pattern(value_SKB: Tensor, patterns: int) -> Tensor:
    return value_SKB.double().unflatten(2, (patterns, -1)).permute(2, 0, 1, 3)
