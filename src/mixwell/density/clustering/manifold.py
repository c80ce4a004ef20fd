"""Manifold linearising and clustering: features in subspaces and a doubly stochastic membership, learnt at once.

**Equation:** z = unit(W_z f(x)), c = unit(W_c f(x)) with one network f; Pi = Sinkhorn(exp(C C' / eta)), whose rows and
columns sum to one. Maximise R(Z) - gamma R_c(Z | Pi), coding rates R(Z) = log det(I + d / (N eps^2) Z' Z) / 2 and
R_c = (1 / N) sum_j log det(I + d / eps^2 Z' Diag(Pi_j) Z) / 2, in batches: features spread in all, but within what Pi
joins lie in few directions. Start: f and W_z maximise R(Z) + agreement z(x) . z(x') with x' = x plus noise, then
W_c = W_z. Labels: spectral clustering of Pi.

**Shapes:** X (N, D); Z and C (N, d); `membership_` (N, N), `labels_` (N,).

**Reference:** Ding, Tong, Chan, Dai, Ma, Haeffele (2023), Unsupervised Manifold Linearizing and Clustering, ICCV,
arXiv:2301.01805; coding rates: Yu, Chan, You, Song, Ma (2020).

**Differs:** written from memory of the paper. f is a perceptron of rows and x' has normal noise, where the paper has
images, residual networks and crops. Agreement goes on in the second stage. Sinkhorn's iteration is its symmetric form.

**Fails when:** noise of `jitter` carries a row to another manifold; d is larger than the number of clusters: the rates
alone are best with d groups, and a long manifold falls into several unless agreement holds it together (which crops of
images do better than noise); N is beyond some thousands (Pi is N x N).

**Cost:** O(B^2 d^2 + B d^3) a step of B rows, beside the network's; O(N^3) for the spectral clustering.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.cluster import SpectralClustering
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.rng import generator as seeded
from mixwell.density._gaussian import Array, log_diagonal, outer, symmetric
from mixwell.density._options import Configured
from mixwell.density._training import descend
from mixwell.density.clustering._networks import Perceptron, linear


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the clustering; `ValueError` for one out of range."""

    n_clusters: int = 2  # read at the end alone, by the spectral clustering
    feature_dim: int = 4  # d, best near the number of clusters
    hidden_dim: int = 64  # of the network's two hidden layers
    eta: float = 0.5  # Sinkhorn's temperature: memberships are the softer the larger it is
    gamma: float = 1.0  # weight of the rate within
    eps: float = 0.5  # the precision to which features are coded
    jitter: float = 0.3  # standard deviation of the noise, in that of the rows
    agreement: float = 20.0  # weight of two noisy copies' agreement, in nats
    sinkhorn_iter: int = 15
    start_steps: int = 100  # of the first stage
    steps: int = 300  # of the second
    batch_size: int = 128
    lr: float = 1e-2
    random_state: Any = None

    def __post_init__(self) -> None:
        for name in ("n_clusters", "feature_dim", "hidden_dim", "sinkhorn_iter"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        for name in ("eta", "eps", "lr"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} is {value}; expected above 0")
        for name in ("gamma", "jitter", "agreement", "start_steps", "steps"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} is {value}; expected 0 or more")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; expected 2 or more")


def doubly_stochastic(score_NN: Tensor, iterations: int) -> Tensor:
    """exp(score) with rows and columns scaled until they sum to one; scores (N, N) are symmetric."""
    scale_N = -torch.logsumexp(score_NN, 1) / 2
    for _ in range(iterations):
        wanted_N = -torch.logsumexp(score_NN + scale_N, 1)
        scale_N = (scale_N + wanted_N) / 2
    log_NN = score_NN + scale_N + scale_N[:, None]
    return log_NN.exp()


def coding_rate(moment_DD: Tensor, eps: float) -> Tensor:
    """log det(I + d / eps^2 moment) / 2, in nats, of second moments (..., d, d)."""
    d = moment_DD.shape[-1]
    scale = d / eps**2
    eye_DD = torch.eye(d, dtype=moment_DD.dtype)
    coded_DD = eye_DD + scale * moment_DD
    root_DD = torch.linalg.cholesky(coded_DD)
    return log_diagonal(root_DD)


def rates(z_ND: Tensor, pi_NN: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """R(Z), and R_c(Z | Pi) with a group for every row of Pi."""
    N, D = z_ND.shape
    square_NDD = outer(z_ND, z_ND)
    moment_DD = square_NDD.mean(0)
    whole = coding_rate(moment_DD, eps)
    within_NV = pi_NN @ square_NDD.flatten(1)
    within_NDD = within_NV.view(N, D, D)
    within_N = coding_rate(within_NDD, eps)
    return whole, within_N.mean()


class Features(nn.Module):
    """The network and its two heads."""

    def __init__(self, columns: int, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        wide = config.hidden_dim
        self.body = Perceptron((columns, wide, wide), generator)
        self.z_head = linear(wide, config.feature_dim, generator)
        self.c_head = linear(wide, config.feature_dim, generator)

    def forward(self, x_NX: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features z and c (N, d)."""
        f_NH = self.body(x_NX).relu()
        z_ND, c_ND = self.z_head(f_NH), self.c_head(f_NH)
        return F.normalize(z_ND, dim=1), F.normalize(c_ND, dim=1)


def membership(c_ND: Tensor, config: Config) -> Tensor:
    """Pi (N, N)."""
    score_NN = c_ND @ c_ND.T / config.eta
    return doubly_stochastic(score_NN, config.sinkhorn_iter)


class Losses:
    """The losses of both stages, each of a fresh batch and of noise of its own."""

    def __init__(self, net: Features, x_NX: Tensor, config: Config, draws: torch.Generator) -> None:
        self.net = net
        self.x_NX = x_NX
        self.config = config
        self.draws = draws

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """z and c of rows drawn without replacement, and how well z agrees with that of a noisy copy."""
        config, draws = self.config, self.draws
        order_N = torch.randperm(len(self.x_NX), generator=draws)
        chosen_B = order_N[: config.batch_size]
        x_BX = self.x_NX[chosen_B]
        noise_BX = torch.randn(x_BX.shape, generator=draws, dtype=x_BX.dtype)
        noisy_BX = x_BX + config.jitter * noise_BX
        z_BD, c_BD = self.net(x_BX)
        other_BD, _ = self.net(noisy_BX)
        agreed_B = (z_BD * other_BD).sum(1)
        return z_BD, c_BD, config.agreement * agreed_B.mean()

    def first(self) -> Tensor:
        """-R(Z) and the disagreement; the other head learns nothing."""
        z_BD, _, agreed = self.batch()
        moment_DD = z_BD.T @ z_BD / len(z_BD)
        return -coding_rate(moment_DD, self.config.eps) - agreed

    def second(self) -> Tensor:
        """-(R - gamma R_c) and the disagreement."""
        z_BD, c_BD, agreed = self.batch()
        whole, within = rates(z_BD, membership(c_BD, self.config), self.config.eps)
        return self.config.gamma * within - whole - agreed


@method(title="Manifold linearising and clustering", year=2023, tags={"estimator", "sklearn"},
        paper="Unsupervised Manifold Linearizing and Clustering")
class ManifoldClustering(Configured, ClusterMixin, TransformerMixin, BaseEstimator, config=Config):
    """Clusters of rows on curved manifolds, and features in which each is nearly flat; see the card and `Config`."""

    def fit(self, X: Any, y: Any = None) -> ManifoldClustering:
        """Fit to rows X (N, D); returns self. `ValueError` for values that are not finite, or too few rows."""
        config = self._config()
        fewest = max(2, config.n_clusters)
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=fewest)
        rng = check_random_state(config.random_state)
        seed, start = rng.randint(2**31, size=2).tolist()
        draws = seeded(seed)
        self.mean_ = X.mean(0)
        self.scale_ = float(np.sqrt(X.var(0).mean())) or 1.0  # one for all columns, so that distances keep their shape
        x_NX = self._standard(X)
        self._net = Features(X.shape[1], config, draws)
        losses = Losses(self._net, x_NX, config, draws)
        self.start_losses_ = self._descend(losses.first, config.start_steps, config)
        trained = self._net.z_head.state_dict()
        self._net.c_head.load_state_dict(trained)
        self.losses_ = self._descend(losses.second, config.steps, config)
        with torch.no_grad():
            _, c_ND = self._net(x_NX)
            pi_NN = membership(c_ND, config)
        self.membership_ = symmetric(pi_NN.numpy())
        spectral = SpectralClustering(config.n_clusters, affinity="precomputed", random_state=start)
        self.labels_ = spectral.fit(self.membership_).labels_
        return self

    def _descend(self, loss: Callable[[], Tensor], steps: int, config: Config) -> list[float]:
        with torch.enable_grad():
            return list(descend(self._net, loss, steps=steps, lr=config.lr, warm=10))

    def _standard(self, X: Array) -> Tensor:
        return torch.from_numpy((X - self.mean_) / self.scale_)

    def transform(self, X: Any) -> Array:
        """Features z (N, d), unit rows near a subspace for each cluster; an error before `fit`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        with torch.no_grad():
            z_ND, _ = self._net(self._standard(X))
        return z_ND.numpy()


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two parallel arcs."""
    angle_N = torch.rand(40, generator=generator, dtype=torch.float64)
    circle_N2 = torch.stack([angle_N.cos(), angle_N.sin()], 1)
    radius_N1 = 1.0 + torch.arange(40)[:, None] % 2
    x_N2 = radius_N1 * circle_N2
    estimator = ManifoldClustering(
        hidden_dim=8,
        feature_dim=3,
        start_steps=5,
        steps=5,
        random_state=0,
    )
    return {"estimator": estimator, "X": x_N2.numpy()}
