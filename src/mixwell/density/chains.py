"""Paths through chains of states.

T rows of a sequence, K states.
"""

from __future__ import annotations

import numpy as np

from mixwell.density._gaussian import Array


def likeliest_path(start_K: Array, step_KK: Array, own_TK: Array) -> tuple[float, Array]:
    """The highest sum of scores of a start, steps (from row to column) and rows, and the path (T,) that has it."""
    T, K = own_TK.shape
    came_TK = np.zeros((T, K), dtype=int)
    best_K = start_K + own_TK[0]
    for t in range(1, T):
        reached_KK = best_K[:, None] + step_KK
        came_TK[t] = reached_KK.argmax(0)
        best_K = reached_KK.max(0) + own_TK[t]
    path_T = np.empty(T, dtype=int)
    path_T[-1] = best_K.argmax()
    for t in range(T - 1, 0, -1):
        state = path_T[t]
        path_T[t - 1] = came_TK[t, state]
    return float(best_K.max()), path_T
