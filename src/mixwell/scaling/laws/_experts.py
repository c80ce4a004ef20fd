"""What laws over experts share: the effective number of experts, and Transformers of a fixed form by size."""

from __future__ import annotations

import numpy as np

ASPECT = 64  # width of a model over its blocks


def effective_experts(experts_N: np.ndarray, start: float, most: float) -> np.ndarray:
    """Experts that a law counts with: from `start` for one expert, saturating at `most` (Clark et al. 2022)."""
    head = 1 / (1 / start - 1 / most)
    inverse_N = 1 / (experts_N - 1 + head) + 1 / most
    return 1 / inverse_N


def blocks_of(parameters_N: np.ndarray, a_block: float, beside: float = 0.0) -> np.ndarray:
    """Blocks L of a model with parameters = a_block d^2 L + beside d and d = 64 L; a real number for each model.

    a_block: parameters of a block in d^2; beside: rows of width d outside the blocks, as of an embedding.
    """
    cubic = a_block * ASPECT**2
    linear = beside * ASPECT
    blocks_N = np.cbrt(parameters_N / cubic)
    for _ in range(60):  # Newton; the function is convex and increasing, so that it comes from above
        excess_N = cubic * blocks_N**3 + linear * blocks_N - parameters_N
        slope_N = 3 * cubic * blocks_N**2 + linear
        blocks_N = blocks_N - excess_N / slope_N
    return blocks_N
