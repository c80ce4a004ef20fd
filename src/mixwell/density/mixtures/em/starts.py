"""Where EM starts: some of the rows, and who is responsible for them.

N rows, B rows of a piece, D columns, K components.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans, kmeans_plusplus
from torch import Tensor

from mixwell.density.mixtures.em.loop import Assign
from mixwell.density.mixtures.em.rows import ArrayRows, Piece, Rows, column_name, imputed
from mixwell.density.mixtures.em.sparse import SparseRows

STREAM_ROWS = 50_000  # rows of a stream that the start is computed from
METHODS = ("kmeans", "random", "random_from_data", "k-means++")
Points = Callable[[np.ndarray], np.ndarray]  # coordinates of rows in which k-means makes sense


class Assigned(NamedTuple):
    """Rows to start from, their responsibilities and their weights."""

    rows: Rows
    assign: Assign
    weights_N: Tensor | None


def starting_rows(rows: Rows, weights_N: Tensor | None, size: int | None, least: int,
                  rng: np.random.RandomState) -> tuple[Rows, Tensor | None]:
    """Rows (imputed) and weights to compute a start from: all, or `size` random ones, `least` or more.

    Raises a `ValueError` where a column has no value in them.
    """
    if size is None and rows.streamed:
        size = STREAM_ROWS
    chosen = None
    if size is not None and size < rows.n_rows:
        drawn = rng.choice(rows.n_rows, max(size, least), replace=False)
        chosen = np.sort(drawn)
        if weights_N is not None:
            weights_N = weights_N[torch.as_tensor(chosen)]
    if isinstance(rows, SparseRows):
        return rows if chosen is None else rows.some(chosen), weights_N
    x_ND = torch.cat([chunk for _, chunk in rows.chunks()]) if chosen is None else rows.take(chosen)
    _refuse_empty_columns(x_ND, rows)
    return ArrayRows(imputed(x_ND)), weights_N


def _refuse_empty_columns(x_ND: Tensor, rows: Rows) -> None:
    empty_D = x_ND.isnan().all(0)
    if bool(empty_D.any()):
        column = int(empty_D.nonzero()[0, 0])
        name = column_name(rows.names, column)
        raise ValueError(f"column {name} has no value in the {len(x_ND)} rows of the start; remove it, or give "
                         "starting values.")


def assignment(method: str, rows: Rows, weights_N: Tensor | None, K: int, points: Points,
               rng: np.random.RandomState) -> Assigned:
    """Responsibilities by one of `METHODS`: clusters, random shares, or single rows that stand for a component each.

    Raises a `ValueError` where fewer than K rows have a weight.
    """
    weight_N = None if weights_N is None else weights_N.cpu().numpy()
    if method == "kmeans":
        places = points(_as_numbers(rows))
        clusters = KMeans(n_clusters=K, n_init=1, random_state=rng).fit(places, sample_weight=weight_N)
        return Assigned(rows, _by_label(clusters.labels_, K), weights_N)
    if method == "random":
        shares_NK = rng.uniform(size=(rows.n_rows, K))
        return Assigned(rows, _by_share(shares_NK), weights_N)
    if method == "random_from_data":
        index_K = _random_rows(rows.n_rows, weight_N, K, rng)
    else:
        places = points(_as_numbers(rows))
        _, index_K = kmeans_plusplus(places, K, random_state=rng, sample_weight=weight_N)
    return Assigned(_few(rows, index_K), _by_label(np.arange(K), K), None)


def _as_numbers(rows: Rows) -> Any:
    """All rows at once, as an array, or a sparse table as it is."""
    if isinstance(rows, SparseRows):
        return rows.x
    _, x_ND = next(rows.chunks())
    return x_ND.cpu().numpy()


def _few(rows: Rows, index_K: np.ndarray) -> Rows:
    """Some rows in the order of an index."""
    if isinstance(rows, SparseRows):
        return rows.some(index_K)
    _, x_ND = next(rows.chunks())
    chosen_K = torch.as_tensor(index_K, device=x_ND.device)
    return ArrayRows(x_ND[chosen_K])


def _by_label(labels: np.ndarray, K: int) -> Assign:
    """Rows belong to the components that their labels name."""
    labels_N = torch.as_tensor(labels, dtype=torch.long)
    return lambda piece: one_hot(labels_N[piece.index], K, piece)


def _by_share(shares_NK: np.ndarray) -> Assign:
    """Rows belong to all components, in proportion to these numbers."""
    resp_NK = torch.from_numpy(shares_NK)
    resp_NK /= resp_NK.sum(1, keepdim=True)

    def assign(piece: Piece) -> Tensor:
        resp_KB = resp_NK[piece.index].T
        return resp_KB[None].to(piece.x_BD.device)

    return assign


def _random_rows(count: int, weight_N: np.ndarray | None, K: int, rng: np.random.RandomState) -> np.ndarray:
    if weight_N is None:
        return rng.choice(count, size=K, replace=False)
    there = np.count_nonzero(weight_N > 0)
    if there < K:
        raise ValueError(f"{there} rows have a weight above 0; expected n_components={K} or more.")
    share_N = weight_N / weight_N.sum()
    return rng.choice(count, size=K, replace=False, p=share_N)


def one_hot(labels_B: Tensor, K: int, piece: Piece) -> Tensor:
    """Responsibilities (1, K, B) of rows that belong to one component each."""
    B = len(labels_B)
    hot_KB = torch.zeros(K, B, dtype=torch.float64)
    hot_KB[labels_B, torch.arange(B)] = 1
    return hot_KB[None].to(piece.x_BD.device)
