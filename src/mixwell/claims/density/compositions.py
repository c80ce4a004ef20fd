"""Compositions: partial correlations find the planted graph of the parts where correlations of shares do not.

Paper: Partial Correlations in Compositional Data Analysis.
Tried: 400 compositions of 20 parts, softmax of Gaussian logarithms whose precision matrix has 30 edges of both signs,
some parts far more abundant and variable than others; area under the curve of absolute values for edges against
correlations of the shares, of their clr, and partial correlations of the shares. All 20 references and the
pseudo-inverse of the clr covariance must give the same to 1e-8.
Against it: correlations of shares rank edges as well, or references differ.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find

PARTS, ROWS, EDGES = 20, 400, 30
Array = np.ndarray


def problem(seed: int) -> tuple[Array, Array]:
    """Compositions (ROWS, PARTS) and the planted edges, True above the diagonal."""
    rng = np.random.default_rng(seed)
    upper = np.stack(np.triu_indices(PARTS, 1), 1)
    i, j = upper[rng.choice(len(upper), EDGES, replace=False)].T
    precision = np.zeros((PARTS, PARTS))
    precision[i, j] = precision[j, i] = rng.choice([-1.0, 1.0], EDGES) * rng.uniform(0.3, 0.6, EDGES)
    np.fill_diagonal(precision, np.abs(precision).sum(1) + 0.3)
    scale = np.exp(rng.normal(size=PARTS) * 0.5)
    covariance = np.linalg.inv(precision) * np.outer(scale, scale)
    logs = rng.multivariate_normal(rng.normal(size=PARTS), covariance, ROWS)
    share = np.exp(logs - logs.max(1, keepdims=True))
    planted = np.zeros((PARTS, PARTS), dtype=bool)
    planted[i, j] = True
    return share / share.sum(1, keepdims=True), planted


def normalised(precision: Array) -> Array:
    """Partial correlations of a precision matrix, off its diagonal."""
    scale = 1 / np.sqrt(np.diag(precision))
    return -precision * np.outer(scale, scale)


def spread(shares: Array, found: Array) -> float:
    """Largest difference from partial correlations by any reference or by the pseudo-inverse."""
    logs, worst = np.log(shares), 0.0
    for r in range(PARTS):
        others = [d for d in range(PARTS) if d != r]
        by_reference = normalised(np.linalg.inv(np.cov((logs[:, others] - logs[:, [r]]).T)))
        np.fill_diagonal(by_reference, 1.0)
        worst = max(worst, float(np.abs(by_reference - found[np.ix_(others, others)]).max()))
    by_inverse = normalised(np.linalg.pinv(np.cov((logs - logs.mean(1, keepdims=True)).T), rcond=1e-10))
    np.fill_diagonal(by_inverse, 1.0)
    return max(worst, float(np.abs(by_inverse - found).max()))


def claim(bench: Bench) -> Evidence:
    """Area under the curve for edges."""
    from sklearn.metrics import roc_auc_score

    method = find("density.values.compositions").load()
    above = np.triu_indices(PARTS, 1)
    found: dict[str, list[float]] = {}
    for seed in bench.seeds:
        shares, planted = problem(seed)
        ours = method(torch.tensor(shares)).correlations_DD.numpy()
        logs = np.log(shares)
        scores = {"partial, log-ratios": ours, "shares": np.corrcoef(shares.T),
                  "clr": np.corrcoef((logs - logs.mean(1, keepdims=True)).T),
                  "partial, shares": normalised(np.linalg.pinv(np.cov(shares.T), rcond=1e-10))}
        for name, score in scores.items():
            found.setdefault(name, []).append(float(roc_auc_score(planted[above], np.abs(score[above]))))
        found.setdefault("difference of references", []).append(spread(shares, ours))
    close = ", ".join(f"{value:.2f}" for value in found["clr"])
    evidence = weigh("Partial correlations of parts are the same for every reference and find a planted graph.",
                     "area under the curve of edges", found.pop("partial, log-ratios"), found.pop("shares"),
                     lower_is_better=False, note=f"Plain correlations of clr come near it here: {close}.")
    evidence = replace(evidence, values=evidence.values | found)
    if max(found["difference of references"]) >= 1e-8:
        evidence = replace(evidence, outcome="did not hold", note="References differ by 1e-8 or more.")
    return evidence
