"""Partitive partitioning: k-means parts that a Gaussian mixture confirms, their number found, the same for every run.

**Equation:** rows are cut into j = 2, 3, ... parts by k-means, and a Gaussian mixture of j components climbs from those
parts. The cut is valid where both put at least `agreement` of the rows in the same part and the mixture's BIC is below
a single Gaussian's; the valid cut of lowest BIC is kept. Its separable rows, which the mixture puts with a probability
of at least `certainty` where k-means did, go on; the others leave. Each part is cut in turn, and K is the number of
parts that no valid cut divides. K-means on the rows that are left, from the parts' means, gives the centres; every row
goes to its nearest.

**Shapes:** X (N, D); `cluster_centers_` (K, D), `labels_` (N,), `separable_` (N,) booleans.

**Reference:** Sultan (2020), Probabilistic Partitive Partitioning (PPP), arXiv:2003.04372; Su and Dy (2007), In Search
of Deterministic Methods for Initializing K-means and Gaussian Mixture Clustering, for the starts.

**Differs:** built from the abstract, which has no formulas: what agreement and separability measure, BIC, the recursion
and the starts are ours. Starts are deterministic (the widest part is halved across its longest axis until there are j),
so that nothing is drawn and only the order of sums can tell two runs apart.

**Fails when:** clusters are far from Gaussian (each is cut on), or of very different widths (k-means and the mixture
then disagree, and nothing is cut). Full covariances never cut off a part of D rows or fewer.

**Cost:** for every part tried, `max_parts` - 1 runs of k-means and EM on its rows; the last k-means sees the separable
rows alone.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import KMeans
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._gaussian import Array
from mixwell.density._options import Configured
from mixwell.density.mixtures.gaussian import GaussianMixture

FLOOR = 1e-6  # least variance of a component, in mean variances of the columns


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of partitive partitioning; the abstract states none of the values."""

    agreement: float = 0.9  # share of rows that k-means and the mixture must put in the same part, above 0 up to 1
    certainty: float = 0.9  # responsibility from which a row is separable, 0 to below 1
    max_parts: int = 4  # most parts of one cut, 2 or more
    min_rows: int = 10  # smaller parts are not cut, 2 or more
    covariance_type: Literal["full", "diag", "spherical"] = "full"  # of the mixtures

    def __post_init__(self) -> None:
        if not 0 < self.agreement <= 1 or not 0 <= self.certainty < 1:
            raise ValueError(f"agreement is {self.agreement}, certainty {self.certainty}; expected above 0 up to 1, 0 "
                             "to below 1")
        if self.max_parts < 2 or self.min_rows < 2:
            raise ValueError(f"max_parts is {self.max_parts}, min_rows {self.min_rows}; expected 2 or more of each")
        if self.covariance_type not in ("full", "diag", "spherical"):
            raise ValueError(f"covariance_type is {self.covariance_type!r}; expected 'full', 'diag' or 'spherical'")


def halved(x_ND: Array, parts: int) -> Array:
    """Means (parts, D) of parts found by halving the one of largest scatter across its longest axis."""
    labels_N = np.zeros(len(x_ND), dtype=int)
    for new in range(1, parts):
        scatter = [((x_ND[labels_N == k] - x_ND[labels_N == k].mean(0)) ** 2).sum() for k in range(new)]
        rows = np.flatnonzero(labels_N == int(np.argmax(scatter)))
        centred_ND = x_ND[rows] - x_ND[rows].mean(0)
        axis_D = np.linalg.eigh(centred_ND.T @ centred_ND)[1][:, -1]
        labels_N[rows[centred_ND @ axis_D > 0]] = new
    return part_means(x_ND, labels_N)


def part_means(x_ND: Array, labels_N: Array) -> Array:
    """Means (K, D) of parts 0..K-1."""
    return np.stack([x_ND[labels_N == k].mean(0) for k in range(labels_N.max() + 1)])


def confirm(x_ND: Array, labels_N: Array, floor: float, config: Config) -> tuple[Array, float]:
    """Responsibilities (N, K) and BIC of a mixture that starts from the parts, in their order; `floor`: a variance."""
    share_K = np.bincount(labels_N) / len(labels_N)
    within = x_ND - part_means(x_ND, labels_N)[labels_N]
    precision = _precision(within.T @ within / len(x_ND) + floor * np.eye(x_ND.shape[1]), config.covariance_type)
    model = GaussianMixture(len(share_K), covariance_type=config.covariance_type, reg_covar=floor, weights_init=share_K,
                            means_init=part_means(x_ND, labels_N), precisions_init=np.stack([precision] * len(share_K)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # agreement is judged, not the optimum
        model.fit(x_ND)
    return model.predict_proba(x_ND), float(model.bic(x_ND))


def _precision(covariance_DD: Array, kind: str) -> Array:
    """Of one part, in the shape that the mixture wants."""
    if kind == "full":
        return np.linalg.inv(covariance_DD)
    variance_D = np.diag(covariance_DD)
    return 1 / variance_D if kind == "diag" else 1 / variance_D.mean()


def cut(x_ND: Array, floor: float, config: Config) -> tuple[Array, float] | None:
    """Labels (N,) of the valid cut of lowest BIC, -1 for rows that are not separable, and its agreement; or None."""
    most = min(config.max_parts, len(np.unique(x_ND, axis=0)))
    if len(x_ND) < config.min_rows or most < 2:
        return None
    fewest = x_ND.shape[1] + 1 if config.covariance_type == "full" else 2  # rows that a covariance needs
    _, lowest = confirm(x_ND, np.zeros(len(x_ND), dtype=int), floor, config)
    best = None
    for parts in range(2, most + 1):
        labels_N = KMeans(parts, init=halved(x_ND, parts), n_init=1).fit(x_ND).labels_
        if np.bincount(labels_N, minlength=parts).min() < fewest:
            continue
        resp_NK, bic = confirm(x_ND, labels_N, floor, config)
        same_N = resp_NK.argmax(1) == labels_N
        kept_N = same_N & (resp_NK.max(1) >= config.certainty)
        whole = len(np.unique(labels_N[kept_N])) == parts
        if whole and same_N.mean() >= config.agreement and bic < lowest:
            lowest, best = bic, (np.where(kept_N, labels_N, -1), float(same_N.mean()))
    return best


@method(
    title="Partitive partitioning",
    paper="Probabilistic Partitive Partitioning (PPP)",
    year=2020,
    tags={"estimator", "sklearn"},
)
class PartitivePartitioning(ClusterMixin, Configured, BaseEstimator, config=Config):
    """Clustering without a number of clusters and without draws; see the module's card and `Config`.

    Fitted: `cluster_centers_`, `labels_`, `n_clusters_`, `separable_` and `agreements_`, one for every cut kept.
    """

    def fit(self, X: Any, y: Any = None) -> PartitivePartitioning:
        """Find the parts of X (N, D); returns self."""
        config = self._config()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        parts_N = self._parts(X, config)
        self.separable_ = parts_N >= 0
        start_KD = part_means(X[self.separable_], parts_N[self.separable_])
        self.n_clusters_ = len(start_KD)
        final = KMeans(self.n_clusters_, init=start_KD, n_init=1).fit(X[self.separable_])
        self.cluster_centers_ = final.cluster_centers_
        self.labels_ = self._nearest(X)
        return self

    def _parts(self, X: Array, config: Config) -> Array:
        """Labels (N,) of the parts that no valid cut divides, -1 for rows that left."""
        self.agreements_: list[float] = []
        floor = FLOOR * float(X.var(0).mean())
        parts_N, waiting, done = np.full(len(X), -1), [np.arange(len(X))], 0
        while waiting:
            rows = waiting.pop()
            found = cut(X[rows], floor, config)
            if found is None:
                parts_N[rows], done = done, done + 1
                continue
            labels, agreement = found
            self.agreements_.append(agreement)
            waiting += [rows[labels == k] for k in range(labels.max() + 1)]
        return parts_N

    def _nearest(self, X: Array) -> Array:
        return np.stack([((X - centre) ** 2).sum(1) for centre in self.cluster_centers_], 1).argmin(1)

    def predict(self, X: Any) -> Array:
        """The nearest centre of every row (N,)."""
        check_is_fitted(self, "cluster_centers_")
        return self._nearest(validate_data(self, X, dtype=np.float64, reset=False))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three groups in the plane."""
    centres_ND = torch.tensor([[-6.0, 0.0], [0.0, 4.0], [6.0, -1.0]], dtype=torch.float64).repeat_interleave(40, 0)
    x_ND = centres_ND + torch.randn(120, 2, generator=generator, dtype=torch.float64)
    return {"estimator": PartitivePartitioning(max_parts=3), "X": x_ND.numpy()}
