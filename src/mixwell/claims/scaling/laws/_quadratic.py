"""Expected loss of stochastic gradient descent on least squares with a power-law spectrum, exactly, without sampling.

Legend: S settings, I directions that the model has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MOST = 1e30  # where an error that diverges stops
DIRECTIONS = 4096  # of the task; a model has the first `size` of them
LABEL_NOISE = 1.0  # about what the target varies by: batches differ by noise, as a language's do


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
        unlearned = beyond + LABEL_NOISE
        return variance[:size], error[:size], unlearned


def drawn(seed: int) -> Task:
    """A task for each seed."""
    rng = np.random.default_rng([seed, 12])
    return Task(rng.uniform(1.4, 1.7), rng.uniform(1.5, 1.8))


def descent(task: Task, size: int, rates_S: np.ndarray, batches_S: np.ndarray, steps_S: np.ndarray,
            decayed: bool) -> Iterator[np.ndarray]:
    """Expected losses [S] before the first and after every step, for Gaussian inputs.

    decayed: whether rates fall in a line to 0 at a setting's last step.
    """
    variance_I, error_I, unlearned = task.start(size)
    count = len(rates_S)
    error_SI = np.tile(error_I, (count, 1))
    loss_S = error_SI @ variance_I + unlearned
    yield loss_S
    for step in range(int(steps_S.max())):
        rate_S = rates_S
        if decayed:
            left_S = 1 - step / steps_S
            rate_S = rates_S * np.maximum(left_S, 0)
        spread_S = rate_S**2 * loss_S / batches_S
        error_SI = _stepped(error_SI, variance_I, rate_S[:, None], batches_S[:, None])
        error_SI += spread_S[:, None] * variance_I
        loss_S = error_SI @ variance_I + unlearned
        yield loss_S


def _stepped(error_SI: np.ndarray, variance_I: np.ndarray, rate_S1: np.ndarray, batch_S1: np.ndarray) -> np.ndarray:
    """The mean step shrinks the error; the scatter of the batch's own curvature adds to it."""
    pull_SI = rate_S1 * variance_I
    kept_SI = (1 - pull_SI) ** 2
    scattered_SI = pull_SI**2 / batch_S1
    factor_SI = kept_SI + scattered_SI
    return np.minimum(factor_SI * error_SI, MOST)


def grid(*axes: np.ndarray) -> list[np.ndarray]:
    """Every combination of the axes' values, one array for each axis."""
    return [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
