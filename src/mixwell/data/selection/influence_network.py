"""Influence network: a small network learns influence from few exact pairs, and examples that cover the pool stay.

**Equation:** h(i, j) = w2 relu(W1 [e_i ; 0 ; e_j] + b1) + b2, fitted to the exact influence of the pairs of u N
    examples; scaled to [0, 1]; kept greedily for the greatest sum_j max over kept i of h(i, j) (facility location).
**Shapes:** features e [N, D], influence [N, N]; indices [S].
**Reference:** Agarwal et al. 2025 (2502.09969).
**Differs:** rows are drawn at random (the released code takes the first ones); training lasts its epochs, without that
    code's stop at a sum of losses; pairs known exactly are used as they are. Inputs and targets are standardised. The
    position between both embeddings, 0 in the paper, is left out, since it feeds nothing.
**Fails when:** influence hangs on labels that features do not show. Ridge regression on products of features is often
    as good.
**Cost:** (u N)^2 exact pairs; O(N^2 D H) to fill in; O(S N^2) to choose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mixwell.core.method import method
from mixwell.data.pool import Chosen, Pool, check_share, count_of, evenly


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the influence network; `ValueError` for a value out of range."""

    share: float = 0.1  # of the pool that is kept, above 0 and at most 1
    exact: float = 0.2  # u: share of the examples whose pairs are measured, above 0 and at most 1
    hidden: int = 100  # units, at least 1
    epochs: int = 20  # at least 1
    lr: float = 1e-3  # of Adam, above 0

    def __post_init__(self) -> None:
        check_share("share", self.share)
        check_share("exact", self.exact)
        if min(self.hidden, self.epochs) < 1:
            raise ValueError(f"hidden={self.hidden}, epochs={self.epochs}; expected at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; expected a number above 0")


@method(title="Influence network", year=2025, tags={"distinct"},
        paper="Data Valuation using Neural Networks for Efficient Instruction Fine-Tuning")
def influence_network(pool: Pool, config: Config, generator: np.random.Generator) -> Chosen:
    """Examples that influence all of the pool, the first the most."""
    found_NN = estimated(pool, config, generator)
    span = max(np.ptp(found_NN), 1e-12)
    scaled_NN = (found_NN - found_NN.min()) / span
    kept = count_of(config.share, len(pool))
    return evenly(covering(scaled_NN, kept))


def estimated(pool: Pool, config: Config, generator: np.random.Generator) -> np.ndarray:
    """Influence of i on j [N, N]: measured among u N examples, predicted elsewhere."""
    known = count_of(config.exact, len(pool))
    places = generator.choice(len(pool), known, replace=False)
    exact_KK = pool.influences(places, places)
    if known == len(pool):
        back = np.argsort(places)
        return exact_KK[np.ix_(back, back)]
    features = _standard(pool.features_ND)
    found_NN = _fitted(features, places, exact_KK, config, generator)
    found_NN[np.ix_(places, places)] = exact_KK
    return found_NN


def _standard(features_ND: np.ndarray) -> torch.Tensor:
    """Features of mean 0 and deviation 1."""
    deviation_D = features_ND.std(0)
    scale_D = np.where(deviation_D > 0, deviation_D, 1.0)
    standard_ND = (features_ND - features_ND.mean(0)) / scale_D
    return torch.tensor(standard_ND, dtype=torch.float32)


def _fitted(features: torch.Tensor, places: np.ndarray, exact_KK: np.ndarray, config: Config,
            generator: np.random.Generator) -> np.ndarray:
    """The network's influence of every pair, after training on the exact ones."""
    centre = exact_KK.mean()
    spread = max(exact_KK.std(), 1e-12)
    standard_KK = (exact_KK - centre) / spread
    target = torch.tensor(standard_KK, dtype=torch.float32)
    seed = int(generator.integers(2**31))
    draws = torch.Generator().manual_seed(seed)
    network = _Pairs(features.shape[1], config.hidden, draws)
    _train(network, features[places], target, config, draws)
    with torch.no_grad():
        found = network(features[:, None], features)
    standard_NN = found.double().numpy()
    return standard_NN * spread + centre


class _Pairs(nn.Module):
    """One hidden layer over two embeddings; their parts of it are computed apart."""

    def __init__(self, dim: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        first = torch.randn(2, dim, hidden, generator=generator)
        first = first / math.sqrt(2 * dim)
        second = torch.randn(hidden, generator=generator)
        second = second / math.sqrt(hidden)
        self.first = nn.Parameter(first)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Parameter(second)
        self.level = nn.Parameter(torch.zeros(()))

    def forward(self, of: torch.Tensor, on: torch.Tensor) -> torch.Tensor:
        """Influence of each pair; leading dimensions broadcast."""
        first, second = self.first
        inner = of @ first + on @ second + self.bias
        return torch.relu(inner) @ self.second + self.level


def _train(network: _Pairs, features: torch.Tensor, target: torch.Tensor, config: Config,
           draws: torch.Generator) -> None:
    """Squared error over all exact pairs, in batches of 256."""
    count = len(features)
    optimiser = torch.optim.Adam(network.parameters(), lr=config.lr)
    for _ in range(config.epochs):
        order = torch.randperm(count * count, generator=draws)
        for pairs in order.split(256):
            of, on = pairs // count, pairs % count
            error = network(features[of], features[on]) - target[of, on]
            loss = error.square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def covering(benefit_NN: np.ndarray, count: int) -> np.ndarray:
    """Greedy facility location: places whose sum_j max_i benefit is at least 1 - 1/e of the best possible."""
    reached_N = np.zeros(len(benefit_NN))
    kept: list[int] = []
    for _ in range(count):
        gain_NN = np.maximum(benefit_NN - reached_N, 0)
        gain_N = gain_NN.sum(1)
        gain_N[kept] = -1
        best = int(gain_N.argmax())
        kept.append(best)
        reached_N = np.maximum(reached_N, benefit_NN[best])
    return np.array(kept)


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Influence that falls with the distance of two features."""
    features_ND = generator.standard_normal((60, 2))
    off_NND = features_ND[:, None] - features_ND
    distance_NN = (off_NND**2).sum(-1)
    nearness_NN = np.exp(-distance_NN)

    def influence(of_A: np.ndarray, on_B: np.ndarray) -> np.ndarray:
        rows = nearness_NN[of_A]
        return rows[:, on_B]

    pool = Pool(features_ND, influence=influence)
    config = Config(exact=0.3, epochs=5)
    return {"pool": pool, "config": config}
