"""The critical batch grows with the data, hardly with the model.

Paper: How Does Critical Batch Size Scale in Pre-training?.
Tried: stochastic gradient descent on least squares with a power-law spectrum and target (exponents drawn at each seed),
its expected loss by the exact recursion; steps to a goal by batch, each at its best of ten rates, and the critical
batch of the paper's fit. Method: the slope of its logarithm over the logarithm of the samples that the goal takes, at
one size. Baseline: that over the size, at one number of samples, without its sign. Against it: a slope in the samples
that is no steeper.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.scaling.laws._quadratic import Task, descent, drawn, grid
from mixwell.scaling.laws.critical_batch import Config, critical_batch

CLAIM = Claim("The critical batch grows with the data rather than with the model.", "slope of the log critical batch",
              lower_is_better=False)
SIZES = (64, 128, 256)
SAMPLES = (2048, 4096, 8192, 16384)
BATCHES = 2.0 ** np.arange(2, 11)
RATES = 0.02 * 1.6 ** np.arange(10)


def losses(task: Task, size: int) -> np.ndarray:
    """The least expected loss over rates, by step and batch: [steps, batches]."""
    rate_S, batch_S = grid(RATES, BATCHES)
    longest = max(SAMPLES) / BATCHES[0]
    most = np.full_like(batch_S, longest)
    shape = len(RATES), len(BATCHES)
    descending = descent(task, size, rate_S, batch_S, most, decayed=False)
    found = []
    for loss_S in descending:
        by_rate = loss_S.reshape(shape)
        found.append(by_rate.min(0))
    return np.minimum.accumulate(np.array(found))


def critical(loss_TB: np.ndarray, samples: int) -> float:
    """The critical batch for the loss that the smallest batch has after so many samples."""
    smallest = BATCHES[0]
    step = int(samples / smallest)
    goal = loss_TB[step, 0]
    reached_TB = loss_TB <= goal
    steps_B = reached_TB.argmax(0)
    ever_B = reached_TB.any(0)
    table = {"batch": BATCHES[ever_B], "steps": steps_B[ever_B]}
    config = Config(smallest=smallest)
    return critical_batch(table, config).critical


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Both slopes."""
    task = drawn(seed)
    by_size = [losses(task, size) for size in SIZES]
    largest, most = by_size[-1], SAMPLES[-1]
    over_samples = [critical(largest, samples) for samples in SAMPLES]
    over_size = [critical(loss_TB, most) for loss_TB in by_size]
    in_samples = slope(SAMPLES, over_samples)
    in_size = slope(SIZES, over_size)
    return {"method": in_samples, "baseline": abs(in_size)}


def slope(x: tuple[int, ...], y: list[float]) -> float:
    """Of log y over log x."""
    log_x, log_y = np.log(x), np.log(y)
    return float(np.polyfit(log_x, log_y, 1)[0])
