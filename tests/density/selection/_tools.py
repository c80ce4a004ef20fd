"""Rows to choose a number of components for."""

import numpy as np


def three_groups(n=80, d=2, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.array([[-6.0, 0.0], [0.0, 4.0], [6.0, -1.0]])[:, :d]
    return np.repeat(centres, n, axis=0) + rng.normal(size=(3 * n, d))
