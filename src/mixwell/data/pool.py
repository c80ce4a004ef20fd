"""The contract of selection: a pool of examples in, indices and weights of those kept out.

Losses and influences are asked for, not given, since to measure them is what selection saves: a pool counts what was
asked.

Legend: N examples of the pool, D features, S examples kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mixwell.core.errors import MixwellError

Losses = Callable[[np.ndarray], np.ndarray]  # places [M] -> losses [M]
Influence = Callable[[np.ndarray, np.ndarray], np.ndarray]  # places [A], places [B] -> of a on b: [A, B]


@dataclass
class Pool:
    """Examples to choose among; a loss or a pair asked for is counted in `losses_asked` and `pairs_asked`."""

    features_ND: np.ndarray
    losses: Losses | None = None
    influence: Influence | None = None
    losses_asked: int = field(default=0, init=False)
    pairs_asked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        features_ND = np.asarray(self.features_ND, dtype=np.float64)
        if features_ND.ndim != 2 or not len(features_ND):
            raise MixwellError(f"features have the shape {features_ND.shape}; expected a row for each example.")
        if not np.isfinite(features_ND).all():
            raise MixwellError("the features hold a number that is not finite.")
        self.features_ND = features_ND

    @classmethod
    def measured(cls, features_ND: np.ndarray, losses_N: np.ndarray) -> Pool:
        """A pool whose losses are known already."""
        losses_N = np.asarray(losses_N, dtype=np.float64)
        have, rows = len(losses_N), len(features_ND)
        if have != rows:
            raise MixwellError(f"{have} losses came for {rows} examples.")
        return cls(features_ND, losses_N.__getitem__)

    def __len__(self) -> int:
        return len(self.features_ND)

    def losses_at(self, places_M: np.ndarray) -> np.ndarray:
        """Losses of some examples, [M]; negative or not finite ones raise `MixwellError`."""
        if self.losses is None:
            raise MixwellError("the pool has no losses; give what measures them, or Pool.measured.")
        found_M = np.asarray(self.losses(places_M), dtype=np.float64)
        self.losses_asked += len(places_M)
        bad = np.flatnonzero(~(np.isfinite(found_M) & (found_M >= 0)))
        if len(bad):
            raise MixwellError(f"example {places_M[bad[0]]} has the loss {found_M[bad[0]]:g}; expected finite numbers "
                               "of at least 0.")
        return found_M

    def influences(self, of_A: np.ndarray, on_B: np.ndarray) -> np.ndarray:
        """Influence of some examples on others: [A, B]."""
        if self.influence is None:
            raise MixwellError("the pool has no influence; give what measures it for two lists of examples.")
        found_AB = np.asarray(self.influence(of_A, on_B), dtype=np.float64)
        self.pairs_asked += found_AB.size
        if not np.isfinite(found_AB).all():
            raise MixwellError("an influence is not finite.")
        return found_AB


@dataclass(frozen=True)
class Chosen:
    """Examples kept, the first the most wanted; sum_s weights_s l_s speaks for the mean loss."""

    indices_S: np.ndarray
    weights_S: np.ndarray

    def mean(self, losses_S: np.ndarray) -> float:
        """The weighted losses' sum."""
        return float(self.weights_S @ losses_S)


def evenly(indices_S: np.ndarray) -> Chosen:
    """Examples that all count alike."""
    count = len(indices_S)
    return Chosen(indices_S, np.full(count, 1 / count))


def count_of(share: float, total: int) -> int:
    """How many examples a share is, rounded up."""
    exact = share * total
    return int(np.ceil(exact - 1e-9))


def check_share(name: str, share: float) -> None:
    """Raise `ValueError` for what is no share."""
    if not 0 < share <= 1:
        raise ValueError(f"{name} is {share}; expected a number above 0 and at most 1")


def clusters(features_ND: np.ndarray, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """k-means: cluster of each example [N], and centres [K, D]; more clusters than examples raise `MixwellError`."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    have = len(features_ND)
    if count > have:
        raise MixwellError(f"{count} clusters were asked for among {have} examples.")
    seed = int(generator.integers(2**31))
    fitted = KMeans(count, n_init=1, random_state=seed)
    with threadpool_limits(1):
        cluster_N = fitted.fit_predict(features_ND)
    return cluster_N, fitted.cluster_centers_
