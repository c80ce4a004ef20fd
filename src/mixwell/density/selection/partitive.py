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
    """Options of partitive partitioning, of which the abstract states none; `ValueError` for one out of range."""

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
        scatter = [_scatter(x_ND[labels_N == k]) for k in range(new)]
        widest = int(np.argmax(scatter))
        rows = np.flatnonzero(labels_N == widest)
        centred_ND = x_ND[rows] - x_ND[rows].mean(0)
        _, axes_DD = np.linalg.eigh(centred_ND.T @ centred_ND)
        along_N = centred_ND @ axes_DD[:, -1]
        beyond = rows[along_N > 0]
        labels_N[beyond] = new
    return part_means(x_ND, labels_N)


def _scatter(x_ND: Array) -> float:
    """Squared distances from the mean, summed."""
    centred_ND = x_ND - x_ND.mean(0)
    return (centred_ND**2).sum()


def part_means(x_ND: Array, labels_N: Array) -> Array:
    """Means (K, D) of parts 0..K-1."""
    K = labels_N.max() + 1
    means = [x_ND[labels_N == k].mean(0) for k in range(K)]
    return np.stack(means)


def confirm(x_ND: Array, labels_N: Array, floor: float, config: Config) -> tuple[Array, float]:
    """Responsibilities (N, K) and BIC of a mixture that starts from the parts, in their order; `floor`: a variance."""
    N, D = x_ND.shape
    share_K = np.bincount(labels_N) / N
    K = len(share_K)
    means_KD = part_means(x_ND, labels_N)
    within_ND = x_ND - means_KD[labels_N]
    covariance_DD = within_ND.T @ within_ND / N + floor * np.eye(D)
    precision = _precision(covariance_DD, config.covariance_type)
    model = GaussianMixture(
        K,
        covariance_type=config.covariance_type,
        reg_covar=floor,
        weights_init=share_K,
        means_init=means_KD,
        precisions_init=np.stack([precision] * K),
    )
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
    N, D = x_ND.shape
    distinct = len(np.unique(x_ND, axis=0))
    most = min(config.max_parts, distinct)
    if config.min_rows > N or most < 2:
        return None
    fewest = D + 1 if config.covariance_type == "full" else 2  # rows that a covariance needs
    together_N = np.zeros(N, dtype=int)
    _, lowest = confirm(x_ND, together_N, floor, config)
    best = None
    for parts in range(2, most + 1):
        clusters = KMeans(parts, init=halved(x_ND, parts), n_init=1).fit(x_ND)
        labels_N = clusters.labels_
        sizes = np.bincount(labels_N, minlength=parts)
        if sizes.min() < fewest:
            continue
        resp_NK, bic = confirm(x_ND, labels_N, floor, config)
        same_N = resp_NK.argmax(1) == labels_N
        kept_N = same_N & (resp_NK.max(1) >= config.certainty)
        agreement = float(same_N.mean())
        whole = len(np.unique(labels_N[kept_N])) == parts
        if whole and agreement >= config.agreement and bic < lowest:
            lowest = bic
            best = np.where(kept_N, labels_N, -1), agreement
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
        """Find the parts of X (N, D); returns self. A `ValueError` where X or an option is none that can be used."""
        config = self._config()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        parts_N = self._parts(X, config)
        self.separable_ = parts_N >= 0
        rows_ND = X[self.separable_]
        start_KD = part_means(rows_ND, parts_N[self.separable_])
        self.n_clusters_ = len(start_KD)
        final = KMeans(self.n_clusters_, init=start_KD, n_init=1).fit(rows_ND)
        self.cluster_centers_ = final.cluster_centers_
        self.labels_ = self._nearest(X)
        return self

    def _parts(self, X: Array, config: Config) -> Array:
        """Labels (N,) of the parts that no valid cut divides, -1 for rows that left."""
        self.agreements_: list[float] = []
        N = len(X)
        floor = FLOOR * float(X.var(0).mean())
        parts_N = np.full(N, -1)
        waiting = [np.arange(N)]
        done = 0
        while waiting:
            rows = waiting.pop()
            found = cut(X[rows], floor, config)
            if found is None:
                parts_N[rows] = done
                done += 1
                continue
            labels, agreement = found
            self.agreements_.append(agreement)
            K = labels.max() + 1
            waiting += [rows[labels == k] for k in range(K)]
        return parts_N

    def _nearest(self, X: Array) -> Array:
        distances = []
        for centre_D in self.cluster_centers_:
            gap_ND = X - centre_D
            distances.append((gap_ND**2).sum(1))
        return np.stack(distances, 1).argmin(1)

    def predict(self, X: Any) -> Array:
        """The nearest centre of every row (N,); an error before `fit`."""
        check_is_fitted(self, "cluster_centers_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self._nearest(X)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three groups in the plane."""
    centres_3D = torch.tensor([[-6.0, 0.0], [0.0, 4.0], [6.0, -1.0]], dtype=torch.float64)
    centres_ND = centres_3D.repeat_interleave(40, 0)
    noise_ND = torch.randn(120, 2, generator=generator, dtype=torch.float64)
    x_ND = centres_ND + noise_ND
    return {"estimator": PartitivePartitioning(max_parts=3), "X": x_ND.numpy()}
