"""What can be said of a fitted mixture: its components column by column, the pairs that tell them apart, odd rows.

N rows, D columns, K components.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mixwell.density.mixtures.product import Block
from mixwell.tables.columns import Column, decode
from mixwell.tables.kinds import CATEGORY, COUNT, NUMERIC
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
        variances_KD = np.diagonal(self.scales_KDD, axis1=1, axis2=2)
        spread_KD = np.sqrt(variances_KD)
        if self.dofs_K is None:
            return spread_KD
        beyond_K = np.maximum(self.dofs_K - 2, 1e-9)
        wider_K = np.sqrt(self.dofs_K / beyond_K)
        factor_K = np.where(self.dofs_K > 2, wider_K, 1.0)
        return spread_KD * factor_K[:, None]


def normal(fitted: FittedMixture) -> Normal | None:
    """The numeric block, or None."""
    for block in fitted.estimator.blocks_:
        if block.kind == NUMERIC:
            means_KD = np.asarray(block.estimator.means_)
            dofs_K = getattr(block.estimator, "dofs_", None)
            return Normal(block.columns, means_KD, _scales(block.estimator), dofs_K)
    return None


def _scales(estimator: Any) -> np.ndarray:
    """The covariances of an estimator [K, D, D], whatever form they have there."""
    K, D = estimator.means_.shape
    scales = np.asarray(estimator.covariances_, dtype=float)
    form = estimator._layout
    if form == "full":
        return scales
    if form == "tied":
        return np.broadcast_to(scales, (K, D, D))
    variances = scales[:, :, None] if form == "diag" else scales[:, None, None]
    return np.eye(D) * variances


@dataclass(frozen=True, eq=False)
class Profile:
    """One column, component by component, in the data's own units."""

    column: Column
    mean_K: np.ndarray  # rate of a count; empty for categories
    spread_K: np.ndarray
    shares_KC: np.ndarray  # of categories
    overall: Any  # mean over all rows, or shares (C,)
    contrast_K: np.ndarray  # how far from all rows, in their standard deviations; (K, C) for categories


def count_moments(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations (K, D) of a block of counts, Poisson or negative binomial."""
    sizes = getattr(block.estimator, "sizes_", None)
    if sizes is None:
        rates_KD = np.asarray(block.estimator.rates_)
        return rates_KD, np.sqrt(rates_KD)
    means_KD = np.asarray(block.estimator.means_)
    sizes_KD = np.asarray(sizes)
    beyond_KD = means_KD**2 / sizes_KD
    variances_KD = means_KD + beyond_KD
    return means_KD, np.sqrt(variances_KD)


def profiles(fitted: FittedMixture, x_ND: np.ndarray) -> list[Profile]:
    """Every used column."""
    found: list[Profile] = []
    for place, column in enumerate(fitted.used):
        block = next(b for b in fitted.estimator.blocks_ if place in b.columns)
        x_N = x_ND[:, place]
        seen = x_N[~np.isnan(x_N)]
        own = block.columns.index(place)
        if block.kind == CATEGORY:
            shares_KC = np.asarray(block.estimator.probabilities_[own])
            found.append(_of_categories(column, shares_KC, seen))
        elif block.kind == COUNT:
            mean_KD, spread_KD = count_moments(block)
            found.append(_of_numbers(column, mean_KD[:, own], spread_KD[:, own], seen))
        else:
            numeric = normal(fitted)
            assert numeric is not None
            found.append(_of_numbers(column, numeric.means_KD[:, own], numeric.spread_KD[:, own], seen))
    return found


def _of_categories(column: Column, shares_KC: np.ndarray, seen: np.ndarray) -> Profile:
    shares_KC = shares_KC / shares_KC.sum(1, keepdims=True)
    counts_C = np.bincount(seen.astype(int), minlength=len(column.categories))
    overall_C = counts_C / len(seen)
    variance_C = np.maximum(overall_C * (1 - overall_C), 1e-12)
    contrast_KC = (shares_KC - overall_C) / np.sqrt(variance_C)
    return Profile(column, np.empty(0), np.empty(0), shares_KC, overall_C, contrast_KC)


def _of_numbers(column: Column, mean_K: np.ndarray, spread_K: np.ndarray, seen: np.ndarray) -> Profile:
    """From encoded values to the data's own units; the contrast has none."""
    overall = seen.mean()
    spread = max(float(seen.std()), 1e-12)
    contrast_K = (mean_K - overall) / spread
    own_mean_K = decode(column, mean_K)
    own_spread_K = spread_K * column.scale
    return Profile(column, own_mean_K, own_spread_K, np.empty((0, 0)), float(decode(column, overall)), contrast_K)


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
    if fitted.n_components == 1:
        scores = _correlations(block.scales_KDD[0])
    else:
        scores = _agreements(fitted, block, x_ND)
    chosen: list[tuple[int, int]] = []
    shown: Counter[int] = Counter()
    for pair in sorted(scores, key=lambda p: -scores[p]):
        times = [shown[d] for d in pair]
        if len(chosen) < limit and min(times) == 0 and max(times) < 2:
            chosen.append(pair)
            shown.update(pair)
    return chosen


def _correlations(scale_DD: np.ndarray) -> dict[tuple[int, int], float]:
    """Pair -> size of its correlation."""
    spread_D = np.sqrt(np.diagonal(scale_DD))
    size_DD = np.abs(scale_DD / np.outer(spread_D, spread_D))
    columns = range(len(spread_D))
    return {(i, j): size_DD[i, j] for i, j in combinations(columns, 2)}


def _agreements(fitted: FittedMixture, block: Normal, x_ND: np.ndarray) -> dict[tuple[int, int], float]:
    """Pair -> its score, for the columns that score best alone; the better one of a pair comes first."""
    z_ND = x_ND[:, list(block.places)]
    rows = _typical_rows(z_ND)
    z_ND = np.nan_to_num(z_ND[rows])
    resp_NK = fitted.estimator.predict_proba(x_ND[rows])
    weights_K = fitted.estimator.weights_
    columns = range(z_ND.shape[1])
    alone = [_agreement(block, weights_K, resp_NK, z_ND, [d]) for d in columns]
    best_first = sorted(columns, key=lambda d: -alone[d])
    scores = {}
    for i, j in combinations(best_first[:PAIR_COLUMNS], 2):
        scores[i, j] = _agreement(block, weights_K, resp_NK, z_ND, [i, j])
    return scores


def _typical_rows(z_ND: np.ndarray) -> np.ndarray:
    """Some hundred rows spread over the table, complete ones where there are enough."""
    complete = np.flatnonzero(~np.isnan(z_ND).any(1))
    rows = complete if len(complete) >= 20 else np.arange(len(z_ND))
    stride = max(1, len(rows) // PAIR_ROWS)
    return rows[::stride]


def _agreement(block: Normal, weights_K: np.ndarray, resp_NK: np.ndarray, z_ND: np.ndarray, keep: list[int]) -> float:
    """Mean log posterior that the columns `keep` give to the components in `resp_NK`."""
    diff_NKd = z_ND[:, None, keep] - block.means_KD[:, keep]
    scale_Kdd = block.scales_KDD[:, keep][:, :, keep]
    inverse_Kdd = np.linalg.inv(scale_Kdd)
    distance_NK = np.einsum("nki,kij,nkj->nk", diff_NKd, inverse_Kdd, diff_NKd)
    if block.dofs_K is None:
        shape_NK = -0.5 * distance_NK
    else:
        exponent_K = -0.5 * (block.dofs_K + len(keep))
        shape_NK = exponent_K * np.log1p(distance_NK / block.dofs_K)
    _, log_det_K = np.linalg.slogdet(scale_Kdd)
    log_weights_K = np.log(np.maximum(weights_K, 1e-300))
    log_NK = log_weights_K - 0.5 * log_det_K + shape_NK
    log_NK -= log_NK.max(1, keepdims=True)
    total_N = np.exp(log_NK).sum(1, keepdims=True)
    log_NK -= np.log(total_N)
    agreement_N = (resp_NK * log_NK).sum(1)
    return float(agreement_N.mean())


def tail_shares(fitted: FittedMixture, x_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How odd each row is: the share of the model's own draws that are less dense (N,), and a finer score (N,).

    A row is held against draws that lack the same values, since the density of fewer values is another number. The
    score (standard deviations below the draws' mean log density) orders rows where no draw is less dense.
    """
    patterns, inverse_N, counts = _patterns(np.isnan(x_ND))
    common = np.argsort(-counts, kind="stable")[:MOST_PATTERNS]
    pattern_N = _nearest(patterns, common)[inverse_N]
    log_N = fitted.log_density(x_ND)
    share_N = np.empty(len(x_ND))
    score_N = np.empty(len(x_ND))
    draws_SD, _ = fitted.draw(DRAWS, fitted.seed)
    for rank, p in enumerate(common):
        count = DRAWS if rank == 0 else FEWER_DRAWS
        drawn = draws_SD[:count].copy()
        drawn[:, patterns[p]] = np.nan
        log_S = np.sort(fitted.log_density(drawn))
        own = np.flatnonzero(pattern_N == p)
        share_N[own] = np.searchsorted(log_S, log_N[own]) / len(log_S)
        spread = max(float(log_S.std()), 1e-12)
        score_N[own] = (log_S.mean() - log_N[own]) / spread
    return share_N, score_N


def _patterns(absent_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that differ, which one each row is, and how often each is there; bits of a row sort as one value."""
    packed = np.packbits(absent_ND, axis=1)
    one_a_row = np.dtype((np.void, packed.shape[1]))
    keys_N = packed.view(one_a_row).ravel()
    if not absent_ND.any():  # a million equal rows need no sorting
        return absent_ND[:1], np.zeros(len(keys_N), dtype=int), np.array([len(keys_N)])
    _, first, inverse_N, counts = np.unique(keys_N, return_index=True, return_inverse=True, return_counts=True)
    return absent_ND[first], inverse_N, counts


def _nearest(patterns: np.ndarray, common: np.ndarray) -> np.ndarray:
    """For every pattern, the one among the common ones that differs least."""
    if len(patterns) == len(common):
        return np.arange(len(patterns))
    differs = patterns[:, None] != patterns[common][None]
    nearest = differs.sum(2).argmin(1)
    return common[nearest]


def stands_out(found: list[Profile], x_D: np.ndarray, k: int) -> list[tuple[Column, Any, float]]:
    """The up to three columns of an encoded row that are oddest in component k: column, value, standard deviations.

    A category counts as many deviations as a Gaussian value equally rare beside the mode; its sign means nothing.
    """
    odd = []
    for profile, x in zip(found, x_D):
        if np.isnan(x):
            continue
        value = decode(profile.column, np.array([x]))[0]
        deviations = _deviations(profile, x, value, k)
        if abs(deviations) >= STANDS_OUT:
            odd.append((profile.column, value, deviations))
    odd.sort(key=lambda entry: -abs(entry[2]))
    return odd[:3]


def _deviations(profile: Profile, x: float, value: Any, k: int) -> float:
    """How many standard deviations of component k lie between it and an encoded value, which is `value` in the data."""
    if profile.column.kind != CATEGORY:
        spread = max(profile.spread_K[k], 1e-300)
        return (value - profile.mean_K[k]) / spread
    shares_C = profile.shares_KC[k]
    share = shares_C[int(x)] / shares_C.max()
    return math.sqrt(-2 * math.log(max(share, 1e-300)))


def gap(data: np.ndarray, drawn: np.ndarray) -> float:
    """Largest difference between the distribution functions of two samples."""
    at = np.sort(np.concatenate([data, drawn]))
    difference = np.abs(_distribution(data, at) - _distribution(drawn, at))
    return float(difference.max())


def _distribution(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The share of the values that lie at or below each place."""
    below = np.searchsorted(np.sort(values), at, "right")
    return below / len(values)
