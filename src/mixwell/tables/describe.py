"""What can be said of a fitted mixture: its components column by column, the pairs that tell them apart, odd rows.

N rows, D columns, K components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.tables.columns import CATEGORY, COUNT, NUMERIC, Column, decode
from mixwell.tables.model import FittedMixture

DRAWS = 4000  # rows drawn from the model to see how dense its own rows are
FEWER_DRAWS, MOST_PATTERNS = 1000, 60
PAIR_ROWS, PAIR_COLUMNS = 500, 12
STANDS_OUT = 2.0  # standard deviations


@dataclass(frozen=True, eq=False)
class Normal:
    """The numeric block in standardised units."""

    places: tuple[int, ...]  # of its columns among the encoded ones
    means_KD: np.ndarray
    scales_KDD: np.ndarray  # covariances; scale matrices of a Student t
    dofs_K: np.ndarray | None

    @property
    def spread_KD(self) -> np.ndarray:
        """Standard deviations; of a Student t without one (dof at most 2), its scale."""
        spread_KD = np.sqrt(np.diagonal(self.scales_KDD, axis1=1, axis2=2))
        if self.dofs_K is None:
            return spread_KD
        wider_K = np.where(self.dofs_K > 2, np.sqrt(self.dofs_K / np.maximum(self.dofs_K - 2, 1e-9)), 1.0)
        return spread_KD * wider_K[:, None]


def normal(fitted: FittedMixture) -> Normal | None:
    """The numeric block, or None."""
    block = next((b for b in fitted.estimator.blocks_ if b.kind == NUMERIC), None)
    if block is None:
        return None
    e, K, D = block.estimator, fitted.n_components, len(block.columns)
    scales = np.asarray(e.covariances_, dtype=float)
    if e.covariance_type == "tied":
        scales = np.broadcast_to(scales, (K, D, D))
    elif e.covariance_type != "full":
        scales = np.eye(D) * (scales[:, :, None] if e.covariance_type == "diag" else scales[:, None, None])
    return Normal(block.columns, np.asarray(e.means_), scales, getattr(e, "dofs_", None))


@dataclass(frozen=True, eq=False)
class Profile:
    """One column, component by component, in the data's own units."""

    column: Column
    mean_K: np.ndarray  # rate of a count; empty for categories
    spread_K: np.ndarray
    shares_KC: np.ndarray  # of categories
    overall: Any  # mean over all rows, or shares (C,)
    contrast_K: np.ndarray  # how far from all rows, in their standard deviations; (K, C) for categories


def profiles(fitted: FittedMixture, x_ND: np.ndarray) -> list[Profile]:
    """Every used column."""
    found: list[Profile] = []
    for place, column in enumerate(fitted.used):
        block = next(b for b in fitted.estimator.blocks_ if place in b.columns)
        seen = x_ND[~np.isnan(x_ND[:, place]), place]
        own = block.columns.index(place)
        if block.kind == CATEGORY:
            shares_KC = np.asarray(block.estimator.probabilities_[own])
            shares_KC = shares_KC / shares_KC.sum(1, keepdims=True)
            overall_C = np.bincount(seen.astype(int), minlength=len(column.categories)) / len(seen)
            contrast = (shares_KC - overall_C) / np.sqrt(np.maximum(overall_C * (1 - overall_C), 1e-12))
            found.append(Profile(column, np.empty(0), np.empty(0), shares_KC, overall_C, contrast))
            continue
        if block.kind == COUNT:
            mean_K = np.asarray(block.estimator.rates_)[:, own]
            spread_K = np.sqrt(mean_K)
        else:
            numeric = normal(fitted)
            assert numeric is not None
            mean_K, spread_K = numeric.means_KD[:, own], numeric.spread_KD[:, own]
        contrast = (mean_K - seen.mean()) / max(float(seen.std()), 1e-12)
        found.append(Profile(column, decode(column, mean_K), spread_K * column.scale, np.empty((0, 0)),
                             float(decode(column, seen.mean())), contrast))
    return found


def radius(share: float, dof: float | None) -> float:
    """Mahalanobis radius of the ellipse that holds `share` of a component in two dimensions."""
    if dof is None:
        return math.sqrt(-2 * math.log(1 - share))
    return math.sqrt(dof * ((1 - share) ** (-2 / dof) - 1))


def telling_pairs(fitted: FittedMixture, x_ND: np.ndarray, limit: int = 3) -> list[tuple[int, int]]:
    """Pairs of numeric columns (places in the block) that alone tell the components apart best.

    A pair's score is the mean log posterior that it gives to the components that all columns give. With one component:
    the pairs that are correlated most. After the best pair, every further one shows a column not yet shown,
    and none shows a column for a third time.
    """
    block = normal(fitted)
    if block is None or len(block.places) < 2:
        return []
    z_ND = x_ND[:, list(block.places)]
    D = z_ND.shape[1]
    complete = np.flatnonzero(~np.isnan(z_ND).any(1))
    rows = complete if len(complete) >= 20 else np.arange(len(z_ND))
    rows = rows[:: max(1, len(rows) // PAIR_ROWS)]
    z_ND = np.nan_to_num(z_ND[rows])
    if fitted.n_components == 1:
        scale_DD = block.scales_KDD[0]
        spread_D = np.sqrt(np.diagonal(scale_DD))
        score = np.abs(scale_DD / np.outer(spread_D, spread_D))
        pairs = {(i, j): score[i, j] for i in range(D) for j in range(i + 1, D)}
    else:
        resp_NK = fitted.estimator.predict_proba(x_ND[rows])
        weights_K = fitted.estimator.weights_
        alone = [_agreement(block, weights_K, resp_NK, z_ND, [d]) for d in range(D)]
        few = sorted(range(D), key=lambda d: -alone[d])[:PAIR_COLUMNS]
        pairs = {(i, j): _agreement(block, weights_K, resp_NK, z_ND, [i, j]) for i in few for j in few
                 if alone[i] > alone[j] or (alone[i] == alone[j] and i < j)}
    chosen: list[tuple[int, int]] = []
    for pair in sorted(pairs, key=lambda p: -pairs[p]):
        shown = [d for p in chosen for d in p]
        if len(chosen) < limit and not set(pair) <= set(shown) and max(map(shown.count, pair)) < 2:
            chosen.append(pair)
    return chosen


def _agreement(block: Normal, weights_K: np.ndarray, resp_NK: np.ndarray, z_ND: np.ndarray, keep: list[int]) -> float:
    diff_NKd = z_ND[:, None, keep] - block.means_KD[:, keep]
    scale_Kdd = block.scales_KDD[:, keep][:, :, keep]
    distance_NK = np.einsum("nki,kij,nkj->nk", diff_NKd, np.linalg.inv(scale_Kdd), diff_NKd)
    shape_NK = -0.5 * distance_NK
    if block.dofs_K is not None:
        shape_NK = -0.5 * (block.dofs_K + len(keep)) * np.log1p(distance_NK / block.dofs_K)
    log_NK = np.log(np.maximum(weights_K, 1e-300)) - 0.5 * np.linalg.slogdet(scale_Kdd)[1] + shape_NK
    log_NK -= log_NK.max(1, keepdims=True)
    log_NK -= np.log(np.exp(log_NK).sum(1, keepdims=True))
    return float((resp_NK * log_NK).sum(1).mean())


def tail_shares(fitted: FittedMixture, x_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How odd each row is: the share of the model's own draws that are less dense (N,), and a finer score (N,).

    A row is held against draws that lack the same values, since the density of fewer values is another number. The
    score (standard deviations below the draws' mean log density) orders rows where no draw is less dense.
    """
    absent_ND = np.isnan(x_ND)
    patterns, inverse, counts = np.unique(absent_ND, axis=0, return_inverse=True, return_counts=True)
    inverse, log_N = inverse.ravel(), fitted.log_density(x_ND)
    common = np.argsort(-counts, kind="stable")[:MOST_PATTERNS]
    share_N, score_N = np.empty(len(x_ND)), np.empty(len(x_ND))
    draws_SD, _ = fitted.draw(DRAWS, fitted.seed)
    for rank, p in enumerate(common):
        drawn = draws_SD[: DRAWS if rank == 0 else FEWER_DRAWS].copy()
        drawn[:, patterns[p]] = np.nan
        log_S = np.sort(fitted.log_density(drawn))
        own = np.flatnonzero(_nearest(patterns, common)[inverse] == p)
        share_N[own] = np.searchsorted(log_S, log_N[own]) / len(log_S)
        score_N[own] = (log_S.mean() - log_N[own]) / max(float(log_S.std()), 1e-12)
    return share_N, score_N


def _nearest(patterns: np.ndarray, common: np.ndarray) -> np.ndarray:
    """For every pattern, the one among the common ones that differs least."""
    if len(patterns) == len(common):
        return np.arange(len(patterns))
    return common[(patterns[:, None] != patterns[common][None]).sum(2).argmin(1)]


def stands_out(found: list[Profile], x_D: np.ndarray, k: int) -> list[tuple[Column, Any, float]]:
    """The up to three columns of an encoded row that are oddest in component k: column, value, standard deviations.

    A category counts as many deviations as a Gaussian value equally rare beside the mode; its sign means nothing.
    """
    odd = []
    for profile, x in zip(found, x_D):
        if np.isnan(x):
            continue
        value = decode(profile.column, np.array([x]))[0]
        if profile.column.kind == CATEGORY:
            share = profile.shares_KC[k, int(x)] / profile.shares_KC[k].max()
            odd.append((profile.column, value, math.sqrt(-2 * math.log(max(share, 1e-300)))))
        else:
            odd.append((profile.column, value, (value - profile.mean_K[k]) / max(profile.spread_K[k], 1e-300)))
    odd.sort(key=lambda entry: -abs(entry[2]))
    return [entry for entry in odd[:3] if abs(entry[2]) >= STANDS_OUT]


def gap(data: np.ndarray, drawn: np.ndarray) -> float:
    """Largest difference between the distribution functions of two samples."""
    at = np.sort(np.concatenate([data, drawn]))
    return float(np.abs(np.searchsorted(np.sort(data), at, "right") / len(data)
                        - np.searchsorted(np.sort(drawn), at, "right") / len(drawn)).max())
