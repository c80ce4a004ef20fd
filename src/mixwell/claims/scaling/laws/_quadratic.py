"""Expected loss of stochastic gradient descent on least squares with a power-law spectrum, exactly, without sampling.

Legend: S settings, I directions that the model has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

DIRECTIONS = 4096  # of the task; a model has the first `size` of them
LABEL_NOISE = 0.01


@dataclass(frozen=True)
class Task:
    """Inputs with variances i^-spectrum, a target whose power in direction i is i^-target."""

    spectrum: float
    target: float

    def start(self, size: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Variances [I], squared errors of the weights [I], and the variance that a model of this size cannot learn."""
        place = np.arange(1, DIRECTIONS + 1.0)
        variance = place**-self.spectrum
        power = place**-self.target
        error = power / variance
        beyond = power[size:].sum()
        return variance[:size], error[:size], beyond + LABEL_NOISE


def drawn(seed: int) -> Task:
    """A task for each seed."""
    rng = np.random.default_rng([seed, 12])
    return Task(rng.uniform(1.4, 1.7), rng.uniform(1.15, 1.3))


def descent(task: Task, size: int, rates_S: np.ndarray, batches_S: np.ndarray, steps_S: np.ndarray,
            decayed: bool) -> Iterator[np.ndarray]:
    """Expected losses [S] before the first and after every step, for Gaussian inputs; inf where it diverges.

    decayed: whether rates fall in a line to 0 at a setting's last step.
    """
    variance_I, error_I, unlearned = task.start(size)
    count = len(rates_S)
    error_SI = np.tile(error_I, (count, 1))
    loss_S = error_SI @ variance_I + unlearned
    yield loss_S
    for step in range(int(steps_S.max())):
        left_S = np.clip(1 - step / steps_S, 0, 1) if decayed else 1.0
        rate_S1 = (rates_S * left_S)[:, None]
        error_SI = _stepped(error_SI, variance_I, rate_S1, batches_S[:, None], loss_S[:, None])
        loss_S = error_SI @ variance_I + unlearned
        yield loss_S


def _stepped(error_SI: np.ndarray, variance_I: np.ndarray, rate_S1: np.ndarray, batch_S1: np.ndarray,
             loss_S1: np.ndarray) -> np.ndarray:
    """The mean step shrinks the error; the batch's scatter adds to it."""
    pull_SI = rate_S1 * variance_I
    shrunk_SI = (1 - pull_SI) ** 2 * error_SI
    fourth_SI = pull_SI**2 * error_SI
    spread_SI = rate_S1 * pull_SI * loss_S1
    scatter_SI = (fourth_SI + spread_SI) / batch_S1
    return np.minimum(shrunk_SI + scatter_SI, 1e30)


def grid(*axes: np.ndarray) -> list[np.ndarray]:
    """Every combination of the axes' values, one array for each axis."""
    return [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
