"""Clusters on a shortest cycle: soft assignments drawn inside a circle, similar clusters beside each other on its rim.

**Equation:** an autoencoder gives z; p_ik is proportional to 1 / (1 + |z_i - m_k|^2). Loss: reconstruction + a KL(q |
p) with q_ik proportional to p_ik^2 / sum_i p_ik, - b log p_i . p_j over neighbours i, j. Clusters are as similar as
s_kl = sum_i p_ik p_il / sqrt(sum_i p_ik^2 sum_i p_il^2); the Hamiltonian cycle of least total 1 - s orders them, and
cluster k's anchor a_k stands on the unit circle after its share of the cycle's length. Row i is drawn at
sum_k p_ik^(1 / T) a_k / sum_k p_ik^(1 / T).

**Shapes:** X (N, D); `embedding_` (N, 2), `anchors_` (K, 2), `order_` (K,) along the cycle, P (N, K).

**Reference:** Huang, Lin, Zhang et al. (2023), High-dimensional Clustering onto Hamiltonian Cycle, arXiv:2304.14531.

**Differs:** written from the abstract; the forms of the losses and of the similarity are reconstructions. The network
is a perceptron, started as an autoencoder and by k-means in its latent space. Neighbours are found there once. The
cycle is exact up to twelve clusters, beyond it the best of greedy tours improved by 2-opt. `map_on_circle` draws any
mixture's responsibilities the same way.

**Fails when:** assignments are hard, which draws every row at an anchor (raise `temperature`); a row between clusters
that stand opposite each other is drawn at the centre, where outliers are, too. An outlier far beyond one cluster
belongs to it firmly, and is drawn at the rim.

**Cost:** O(N (D + H) H) a pass; O(2^K K^2) for the cycle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.rng import generator as seeded
from mixwell.density._gaussian import Array, log_positive, symmetric
from mixwell.density._options import Configured
from mixwell.density._training import descend
from mixwell.density.clustering._networks import Perceptron

EXACT = 12  # clusters up to which the shortest cycle is found for sure


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the clustering and of its map; `ValueError` for one out of range."""

    n_clusters: int = 8  # K
    latent_dim: int = 5
    hidden_dim: int = 64
    separation: float = 0.1  # a, weight of the sharpened targets
    locality: float = 0.1  # b, weight of neighbours' agreement
    n_neighbors: int = 5
    temperature: float = 1.0  # T of the map: above 1, rows move away from the rim
    start_steps: int = 200  # as an autoencoder alone
    steps: int = 200
    batch_size: int = 128
    lr: float = 3e-3
    random_state: Any = None

    def __post_init__(self) -> None:
        for name in ("n_clusters", "latent_dim", "hidden_dim", "n_neighbors", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        for name in ("separation", "locality", "start_steps", "steps"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} is {value}; expected 0 or more")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; expected above 0")
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; expected above 0")


class CircleMap(NamedTuple):
    """Rows inside a circle, and the clusters on it."""

    points_N2: Array
    anchors_K2: Array
    order_K: Array


def similarity(resp_NK: Array) -> Array:
    """Cosines (K, K) of the columns of responsibilities: how much clusters overlap."""
    length_K = np.sqrt((resp_NK**2).sum(0))
    unit_NK = resp_NK / np.maximum(length_K, 1e-12)
    return unit_NK.T @ unit_NK


def shortest_cycle(distance_KK: Array) -> list[int]:
    """Places in an order of least total distance around, from 0 on; shortest for sure up to twelve."""
    K = len(distance_KK)
    if K <= 3:
        return list(range(K))
    return _by_subsets(distance_KK) if K <= EXACT else _by_exchange(distance_KK)


def _by_subsets(distance_KK: Array) -> list[int]:
    """Held and Karp: the best path from 0 through a set of places to one of them, set by set."""
    K = len(distance_KK)
    sets = 1 << (K - 1)  # bit j is place j + 1
    inner_JJ = distance_KK[1:, 1:]
    best = np.full((sets, K - 1), np.inf)
    came = np.zeros((sets, K - 1), dtype=int)
    for chosen in range(1, sets):
        for j in range(K - 1):
            without = chosen & ~(1 << j)
            if without == chosen:
                continue
            if without == 0:
                best[chosen, j] = distance_KK[0, j + 1]
                continue
            reached = best[without] + inner_JJ[:, j]
            came[chosen, j] = reached.argmin()
            best[chosen, j] = reached.min()
    closed = best[-1] + distance_KK[1:, 0]
    last, chosen = int(closed.argmin()), sets - 1
    path = []
    while chosen:
        path.append(last + 1)
        before = int(came[chosen, last])
        chosen &= ~(1 << last)
        last = before
    return [0, *path[::-1]]


def _by_exchange(distance_KK: Array) -> list[int]:
    """The best of greedy tours from every place, each improved by reversing stretches."""
    tours = [_improved(_greedy(distance_KK, start), distance_KK) for start in range(len(distance_KK))]
    lengths = [cycle_length(tour, distance_KK) for tour in tours]
    shortest = int(np.argmin(lengths))
    best = tours[shortest]
    first = best.index(0)
    return best[first:] + best[:first]


def _greedy(distance_KK: Array, start: int) -> list[int]:
    """To the nearest place that was not visited, again and again."""
    tour, left = [start], set(range(len(distance_KK))) - {start}
    while left:
        here = distance_KK[tour[-1]]
        nearest = min(left, key=lambda place: here[place])
        tour.append(nearest)
        left.remove(nearest)
    return tour


def _improved(tour: list[int], distance_KK: Array) -> list[int]:
    """Stretches reversed as long as that shortens the cycle."""
    length = cycle_length(tour, distance_KK)
    K = len(tour)
    gained = True
    while gained:
        gained = False
        for first in range(1, K - 1):
            for end in range(first + 2, K + 1):
                turned = tour[first:end]
                other = tour[:first] + turned[::-1] + tour[end:]
                shorter = cycle_length(other, distance_KK)
                if shorter < length - 1e-12:
                    tour, length, gained = other, shorter, True
    return tour


def cycle_length(tour: list[int], distance_KK: Array) -> float:
    """Total distance around."""
    after = tour[1:] + tour[:1]
    return float(distance_KK[tour, after].sum())


def map_on_circle(resp_NK: Any, temperature: float = 1.0, like_NK: Any = None) -> CircleMap:
    """Responsibilities (N, K) of any mixture drawn inside a circle; see the card.

    like_NK: responsibilities that the cycle is found from, where not from these. `ValueError` for rows that are no
    probabilities.
    """
    resp_NK = np.asarray(resp_NK, dtype=np.float64)
    told_NK = resp_NK if like_NK is None else np.asarray(like_NK, dtype=np.float64)
    if resp_NK.ndim != 2 or resp_NK.min() < 0 or not np.allclose(resp_NK.sum(1), 1, atol=1e-4):
        raise ValueError("expected responsibilities (rows, components), of which every row sums to one")
    distance_KK = 1 - similarity(told_NK)
    distance_KK = symmetric(distance_KK)
    order = shortest_cycle(distance_KK)
    anchors_K2 = anchored(order, distance_KK)
    points_N2 = drawn(resp_NK, anchors_K2, temperature)
    return CircleMap(points_N2, anchors_K2, np.array(order))


def anchored(order: list[int], distance_KK: Array) -> Array:
    """Anchors (K, 2) at angles by their share of the cycle's length."""
    after = order[1:] + order[:1]
    gap_K = distance_KK[order, after]
    gap_K = np.maximum(gap_K, 1e-9)
    end_K = gap_K.cumsum()
    share_K = (end_K - gap_K) / end_K[-1]
    angle_K = 2 * np.pi * share_K
    place_K2 = np.stack([np.cos(angle_K), np.sin(angle_K)], 1)
    anchors_K2 = np.empty_like(place_K2)
    anchors_K2[order] = place_K2
    return anchors_K2


def drawn(resp_NK: Array, anchors_K2: Array, temperature: float) -> Array:
    """Rows (N, 2) among anchors."""
    log_NK = log_positive(resp_NK) / temperature
    top_N1 = log_NK.max(1, keepdims=True)
    soft_NK = np.exp(log_NK - top_N1)
    share_NK = soft_NK / soft_NK.sum(1, keepdims=True)
    return share_NK @ anchors_K2


def student(z_NL: Tensor, centres_KL: Tensor) -> Tensor:
    """p (N, K)."""
    square_NK = torch.cdist(z_NL, centres_KL).square()
    kernel_NK = 1 / (1 + square_NK)
    return kernel_NK / kernel_NK.sum(1, keepdim=True)


def sharpened(p_NK: Tensor) -> Tensor:
    """The targets q (N, K)."""
    raised_NK = p_NK.square() / p_NK.sum(0)
    return raised_NK / raised_NK.sum(1, keepdim=True)


class Network(nn.Module):
    """Autoencoder and centres."""

    def __init__(self, columns: int, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        wide, narrow = config.hidden_dim, config.latent_dim
        self.encoder = Perceptron((columns, wide, narrow), generator)
        self.decoder = Perceptron((narrow, wide, columns), generator)
        centres_KL = torch.zeros(config.n_clusters, narrow, dtype=torch.float64)
        self.centres_KL = nn.Parameter(centres_KL)

    def forward(self, x_ND: Tensor) -> Tensor:
        """p (N, K)."""
        return student(self.encoder(x_ND), self.centres_KL)


class Losses:
    """The losses of both stages, each of a fresh batch."""

    def __init__(self, net: Network, x_ND: Tensor, config: Config, draws: torch.Generator) -> None:
        self.net = net
        self.x_ND = x_ND
        self.config = config
        self.draws = draws
        self.near_NJ = torch.empty(0)  # neighbours of every row

    def batch(self) -> Tensor:
        """Rows (B,) without repetition."""
        order_N = torch.randperm(len(self.x_ND), generator=self.draws)
        return order_N[: self.config.batch_size]

    def reconstruction(self, x_BD: Tensor, z_BL: Tensor) -> Tensor:
        """Mean squared error of a column."""
        gap_BD = self.net.decoder(z_BL) - x_BD
        return gap_BD.square().mean()

    def first(self) -> Tensor:
        """Reconstruction alone."""
        x_BD = self.x_ND[self.batch()]
        return self.reconstruction(x_BD, self.net.encoder(x_BD))

    def second(self) -> Tensor:
        """Reconstruction, separation and locality."""
        rows_B = self.batch()
        x_BD = self.x_ND[rows_B]
        z_BL = self.net.encoder(x_BD)
        p_BK = student(z_BL, self.net.centres_KL)
        q_BK = sharpened(p_BK.detach())
        log_ratio_BK = q_BK.log() - p_BK.log()
        apart_B = (q_BK * log_ratio_BK).sum(1)
        column_B = torch.randint(self.near_NJ.shape[1], (len(rows_B),), generator=self.draws)
        near_B = self.near_NJ[rows_B, column_B]
        other_BK = self.net(self.x_ND[near_B])
        agreed_B = (p_BK * other_BK).sum(1).log()
        loss = self.reconstruction(x_BD, z_BL)
        loss = loss + self.config.separation * apart_B.mean()
        return loss - self.config.locality * agreed_B.mean()


@method(title="Clusters on a Hamiltonian cycle", year=2023, tags={"estimator", "responsibilities", "sklearn"},
        paper="High-dimensional Clustering onto Hamiltonian Cycle")
class HamiltonianClustering(Configured, ClusterMixin, TransformerMixin, BaseEstimator, config=Config):
    """Soft clusters by an autoencoder, drawn inside a circle; see the card, `map_on_circle` and `Config`."""

    def fit(self, X: Any, y: Any = None) -> HamiltonianClustering:
        """Fit to rows X (N, D); returns self. `ValueError` for values that are not finite, or too few rows."""
        config = self._config()
        fewest = 1 + max(config.n_clusters, config.n_neighbors)
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=fewest)
        rng = check_random_state(config.random_state)
        seed, start = rng.randint(2**31, size=2).tolist()
        draws = seeded(seed)
        self.mean_ = X.mean(0)
        self.scale_ = float(np.sqrt(X.var(0).mean())) or 1.0
        x_ND = self._standard(X)
        self._net = Network(X.shape[1], config, draws)
        losses = Losses(self._net, x_ND, config, draws)
        self.start_losses_ = self._descend(losses.first, config.start_steps)
        self._place(losses, start)
        self.losses_ = self._descend(losses.second, config.steps)
        resp_NK = self._resp(x_ND)
        self.labels_ = resp_NK.argmax(1)
        found = map_on_circle(resp_NK, config.temperature)
        self.embedding_ = found.points_N2
        self.anchors_ = found.anchors_K2
        self.order_ = found.order_K
        return self

    def _place(self, losses: Losses, seed: int) -> None:
        """Centres by k-means, and neighbours, in the latent space as it is now."""
        config = losses.config
        with torch.no_grad():
            z_NL = self._net.encoder(losses.x_ND).numpy()
        means = KMeans(config.n_clusters, n_init=5, random_state=seed).fit(z_NL)
        self._net.centres_KL.data = torch.from_numpy(means.cluster_centers_)
        nearest = NearestNeighbors(n_neighbors=config.n_neighbors).fit(z_NL)
        near_NJ = nearest.kneighbors(return_distance=False)
        losses.near_NJ = torch.from_numpy(near_NJ)

    def _descend(self, loss: Callable[[], Tensor], steps: int) -> list[float]:
        with torch.enable_grad():
            return list(descend(self._net, loss, steps=steps, lr=self.lr))

    def _standard(self, X: Array) -> Tensor:
        centred = X - self.mean_
        return torch.from_numpy(centred / self.scale_)

    def _resp(self, x_ND: Tensor) -> Array:
        with torch.no_grad():
            return self._net(x_ND).numpy()

    def predict_proba(self, X: Any) -> Array:
        """Soft assignments p (N, K); an error before `fit`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self._resp(self._standard(X))

    def predict(self, X: Any) -> Array:
        """The most probable cluster of every row (N,); an error before `fit`."""
        return self.predict_proba(X).argmax(1)

    def transform(self, X: Any) -> Array:
        """Rows inside the circle (N, 2), among the anchors of the fit; an error before `fit`."""
        resp_NK = self.predict_proba(X)
        return drawn(resp_NK, self.anchors_, self.temperature)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Four groups of rows."""
    group_N = torch.arange(60) % 4
    noise_N3 = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    x_N3 = noise_N3 + 4 * group_N[:, None]
    estimator = HamiltonianClustering(
        n_clusters=4,
        hidden_dim=8,
        latent_dim=2,
        start_steps=10,
        steps=10,
        random_state=0,
    )
    return {"estimator": estimator, "X": x_N3.numpy()}
