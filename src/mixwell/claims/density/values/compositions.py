"""Compositions: partial correlations find the planted graph of the parts where correlations of shares do not.

Paper: Partial Correlations in Compositional Data Analysis.
Tried: 400 compositions of 20 parts, softmax of Gaussian logarithms whose precision matrix has 30 edges of both signs,
some parts far more abundant and variable than others; area under the curve of absolute values for edges against
correlations of the shares, of their clr, and partial correlations of the shares. All 20 references and the
pseudo-inverse of the clr covariance must give the same to 1e-8.
Against it: correlations of shares rank edges as well, or references differ.
"""

from __future__ import annotations

import numpy as np
import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.core.registry import find

PARTS, ROWS, EDGES = 20, 400, 30
Array = np.ndarray

CLAIM = Claim("Partial correlations of parts are the same for every reference and find a planted graph.",
              "area under the curve of edges", quantity="area", lower_is_better=False,
              provided=(Comparison(quantity="difference of references", baseline=1e-8),))


def planted_precision(rng: np.random.Generator) -> tuple[Array, Array]:
    """A precision matrix and its edges, True above the diagonal."""
    upper = np.stack(np.triu_indices(PARTS, 1), 1)
    i, j = upper[rng.choice(len(upper), EDGES, replace=False)].T
    precision, planted = np.zeros((PARTS, PARTS)), np.zeros((PARTS, PARTS), dtype=bool)
    planted[i, j] = True
    signs = rng.choice([-1.0, 1.0], EDGES)
    precision[i, j] = precision[j, i] = signs * rng.uniform(0.3, 0.6, EDGES)
    heavy = np.abs(precision).sum(1) + 0.3
    np.fill_diagonal(precision, heavy)
    return precision, planted


def problem(seed: int) -> tuple[Array, Array]:
    """Compositions (ROWS, PARTS) and the planted edges, True above the diagonal."""
    rng = np.random.default_rng(seed)
    precision, planted = planted_precision(rng)
    scale = np.exp(rng.normal(size=PARTS) * 0.5)
    covariance = np.linalg.inv(precision) * np.outer(scale, scale)
    levels = rng.normal(size=PARTS)
    logs = rng.multivariate_normal(levels, covariance, ROWS)
    share = np.exp(logs - logs.max(1, keepdims=True))
    return share / share.sum(1, keepdims=True), planted


def normalised(precision: Array) -> Array:
    """Partial correlations of a precision matrix, off its diagonal."""
    scale = 1 / np.sqrt(np.diag(precision))
    return -precision * np.outer(scale, scale)


def centred_logs(shares: Array) -> Array:
    """Logarithms less their mean in each row (clr)."""
    logs = np.log(shares)
    return logs - logs.mean(1, keepdims=True)


def by_pseudo_inverse(rows: Array) -> Array:
    """Partial correlations of columns that may be dependent, off the diagonal."""
    covariance = np.cov(rows.T)
    return normalised(np.linalg.pinv(covariance, rcond=1e-10))


def largest(difference: Array) -> float:
    """Largest absolute value off the diagonal."""
    off = ~np.eye(len(difference), dtype=bool)
    return float(np.abs(difference[off]).max())


def spread(shares: Array, found: Array) -> float:
    """Largest difference from partial correlations by any reference or by the pseudo-inverse."""
    logs = np.log(shares)
    differences = [largest(by_pseudo_inverse(centred_logs(shares)) - found)]
    for r in range(PARTS):
        others = np.delete(np.arange(PARTS), r)
        ratios = logs[:, others] - logs[:, [r]]
        by_reference = normalised(np.linalg.inv(np.cov(ratios.T)))
        own = found[np.ix_(others, others)]
        differences.append(largest(by_reference - own))
    return max(differences)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Area under the curve for edges of four scores, and the largest difference of references."""
    shares, planted = problem(seed)
    ours = find("density.values.compositions").load()(torch.tensor(shares)).correlations_DD.numpy()
    scores = {"method": ours, "baseline": np.corrcoef(shares.T),
              "clr": np.corrcoef(centred_logs(shares).T), "partial, shares": by_pseudo_inverse(shares)}
    areas = {f"{name} area": area(planted, score) for name, score in scores.items()}
    return areas | {"method difference of references": spread(shares, ours)}


def area(planted: Array, score: Array) -> float:
    """Area under the curve of absolute values for edges."""
    from sklearn.metrics import roc_auc_score

    above = np.triu_indices(PARTS, 1)
    size = np.abs(score[above])
    return float(roc_auc_score(planted[above], size))
