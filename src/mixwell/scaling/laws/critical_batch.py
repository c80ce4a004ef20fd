"""The batch beyond which more data at once saves few steps.

**Equation:** steps to a loss Y(B) = a + b / B; the critical batch is where Y exceeds by 20 % what perfect scaling
    from a small batch B0 would take: Y(B) = 1.2 (a + b / B0) B0 / B gives B* = 1.2 B0 + b / (5 a). Then B* = c N^p.
**Shapes:** columns `batch` (any unit), `steps`; of the second law `n`.
**Reference:** Zhang et al. 2025 (2410.21676).
**Differs:** none in the fit of log Y. Training to the goal (constant rate, averaged weights) is the user's.
**Fails when:** the largest batches are missing: the asymptote a hangs on the last two.
**Cost:** O(N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.scaling.fitting import least_squares
from mixwell.scaling.runs import read


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where perfect scaling begins and how much is lost; `ValueError` for a value out of range."""

    smallest: float = 256.0  # B0, in the unit of the batches, above 0
    overhead: float = 0.2  # share of steps above perfect scaling, above 0

    def __post_init__(self) -> None:
        if not (self.smallest > 0 and self.overhead > 0):
            raise ValueError(f"smallest={self.smallest}, overhead={self.overhead}; expected numbers above 0")


@dataclass(frozen=True)
class StepsToLoss:
    """Y(B) = a + b / B, and its critical batch."""

    a: float
    b: float
    critical: float

    def predict(self, batch: Any) -> np.ndarray:
        """Steps that a batch needs."""
        batch_N = np.asarray(batch, dtype=np.float64)
        return self.a + self.b / batch_N


@method(title="Critical batch size", year=2025,
        paper="How Does Critical Batch Size Scale in Pre-training?")
def critical_batch(table: Any, config: Config) -> StepsToLoss:
    """Fitted to the steps that each batch took to one loss, by least squares of log steps; three batches at least."""
    runs = read(table, ("batch", "steps"))
    batch_N, steps_N = runs["batch"], runs["steps"]
    sizes = len(np.unique(batch_N))
    if sizes < 3:
        raise MixwellError(f"{sizes} sizes of batch came; the law needs at least 3.")
    a, b = _fitted(batch_N, steps_N)
    less = config.overhead
    perfect = (1 + less) * config.smallest
    critical = perfect + less * b / a
    return StepsToLoss(a, b, critical)


def _fitted(batch_N: np.ndarray, steps_N: np.ndarray) -> tuple[float, float]:
    """a and b by least squares of log steps."""
    log_steps_N = np.log(steps_N)
    least = [steps_N.min() / 2, (batch_N * steps_N).min()]

    def residuals(logs: np.ndarray) -> np.ndarray:
        floor, area = np.exp(logs)
        predicted_N = floor + area / batch_N
        return np.log(predicted_N) - log_steps_N

    found = least_squares(residuals, np.log(least), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    a, b = map(float, np.exp(found.x))
    return a, b


def example(generator: np.random.Generator) -> dict[str, Any]:
    """The published steps of a model of 85 M parameters."""
    table = {"batch": BATCHES, "steps": PUBLISHED[85e6]}
    return {"table": table, "config": Config()}


# steps to the goal by parameters, for each of these batches of sequences (the paper's table, MIT licence)
BATCHES = 64.0 * 2.0 ** np.arange(9)
PUBLISHED = {
    85e6: np.array([46000, 23000, 13282, 7000, 3840, 2528, 1917, 1600, 1600.0]),
    151e6: np.array([96000, 49000, 24000, 12000, 7128, 4350, 2940, 2400, 2300.0]),
    302e6: np.array([196000, 90000, 46000, 23400, 13300, 7224, 4980, 3400, 2879.0]),
    604e6: np.array([311000, 166000, 81000, 37440, 21320, 11400, 7199, 4700, 3800.0]),
    1.2e9: np.array([642000, 331000, 176000, 94000, 46500, 25000, 15360, 8900, 6500.0])}
