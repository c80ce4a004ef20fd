"""Where EM starts: some of the rows, and who is responsible for them.

N rows, B rows of a piece, D columns, K components.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans, kmeans_plusplus
from torch import Tensor

from mixwell.density.mixtures.em.loop import Assign
from mixwell.density.mixtures.em.rows import Piece, Rows, column_name, imputed

STREAM_ROWS = 50_000  # rows of a stream that the start is computed from
METHODS = ("kmeans", "random", "random_from_data", "k-means++")
Points = Callable[[np.ndarray], np.ndarray]  # coordinates of rows in which k-means makes sense


class Assigned(NamedTuple):
    """Rows to start from, their responsibilities and their weights."""

    x_ND: Tensor
    assign: Assign
    weights_N: Tensor | None


def starting_rows(rows: Rows, weights_N: Tensor | None, size: int | None, least: int,
                  rng: np.random.RandomState) -> tuple[Tensor, Tensor | None]:
    """Rows (imputed) and weights to compute a start from: all, or `size` random ones, `least` or more."""
    if size is None and rows.streamed:
        size = STREAM_ROWS
    if size is None or size >= rows.n_rows:
        x_ND = torch.cat([chunk for _, chunk in rows.chunks()])
    else:
        chosen = np.sort(rng.choice(rows.n_rows, max(size, least), replace=False))
        x_ND = rows.take(chosen)
        weights_N = None if weights_N is None else weights_N[torch.as_tensor(chosen)]
    _refuse_empty_columns(x_ND, rows)
    return imputed(x_ND), weights_N


def _refuse_empty_columns(x_ND: Tensor, rows: Rows) -> None:
    empty_D = x_ND.isnan().all(0)
    if bool(empty_D.any()):
        name = column_name(rows.names, int(empty_D.nonzero()[0, 0]))
        raise ValueError(f"column {name} has no value in the {len(x_ND)} rows of the start; remove it, or give "
                         "starting values.")


def assignment(method: str, x_ND: Tensor, weights_N: Tensor | None, K: int, points: Points,
               rng: np.random.RandomState) -> Assigned:
    """Responsibilities by one of `METHODS`: clusters, random shares, or single rows that stand for a component each."""
    weight_N = None if weights_N is None else weights_N.cpu().numpy()
    if method == "kmeans":
        clusters = KMeans(n_clusters=K, n_init=1, random_state=rng)
        clusters.fit(points(x_ND.cpu().numpy()), sample_weight=weight_N)
        labels_N = torch.as_tensor(clusters.labels_, dtype=torch.long)
        return Assigned(x_ND, lambda piece: one_hot(labels_N[piece.index], K, piece), weights_N)
    if method == "random":
        resp_NK = torch.from_numpy(rng.uniform(size=(len(x_ND), K)))
        resp_NK /= resp_NK.sum(1, keepdim=True)
        return Assigned(x_ND, lambda piece: resp_NK[piece.index].T[None].to(piece.x_BD.device), weights_N)
    if method == "random_from_data":
        index_K = _random_rows(len(x_ND), weight_N, K, rng)
    else:
        _, index_K = kmeans_plusplus(points(x_ND.cpu().numpy()), K, random_state=rng, sample_weight=weight_N)
    own_K = torch.arange(K)
    few_KD = x_ND[torch.as_tensor(index_K, device=x_ND.device)]
    return Assigned(few_KD, lambda piece: one_hot(own_K[piece.index], K, piece), None)


def _random_rows(count: int, weight_N: np.ndarray | None, K: int, rng: np.random.RandomState) -> np.ndarray:
    if weight_N is None:
        return rng.choice(count, size=K, replace=False)
    there = int((weight_N > 0).sum())
    if there < K:
        raise ValueError(f"{there} rows have a weight above 0; expected n_components={K} or more.")
    return rng.choice(count, size=K, replace=False, p=weight_N / weight_N.sum())


def one_hot(labels_B: Tensor, K: int, piece: Piece) -> Tensor:
    """Responsibilities (1, K, B) of rows that belong to one component each."""
    hot_KB = torch.zeros(K, len(labels_B), dtype=torch.float64)
    hot_KB[labels_B, torch.arange(len(labels_B))] = 1
    return hot_KB[None].to(piece.x_BD.device)
