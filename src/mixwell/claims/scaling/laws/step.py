"""Step law: rates and batches from a law in size and data cost less than one rate and batch for all.

Paper: Predictable Scale: Part I -- Optimal Hyperparameter Scaling Law in Large Language Model Pretraining.
Tried: stochastic gradient descent on least squares with a power-law spectrum and target (exponents drawn at each seed),
rates falling in a line, its expected loss by the exact recursion for nine rates and six batches at nine pairs of size
and samples. The law is fitted to the six pairs of fewest samples; its nearest cell at the others, and the one cell that
is best on average over the six. Against it: an excess over the best cell that is no lower than the constant's.
"""

from __future__ import annotations

import itertools

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.scaling.laws._quadratic import Task, descent, drawn, grid
from mixwell.scaling.laws.step import Config, Steps, step_law

CLAIM = Claim("A law for rate and batch beats one rate and batch for all.", "excess over the best loss in percent")
SIZES = (32, 96, 288)
SAMPLES = (1024, 4096, 16384)
RATES = 0.02 * 1.7 ** np.arange(9)
BATCHES = 2.0 ** np.arange(2, 8)


def cells(task: Task, size: int, samples: int) -> np.ndarray:
    """Expected final loss of every cell: [rates, batches]."""
    rate_S, batch_S = grid(RATES, BATCHES)
    steps_S = samples / batch_S
    descending = descent(task, size, rate_S, batch_S, steps_S, decayed=True)
    *_, last_S = descending
    shape = len(RATES), len(BATCHES)
    return last_S.reshape(shape)


def table(found: dict[tuple[int, int], np.ndarray]) -> dict[str, np.ndarray]:
    """The cells of all pairs as runs."""
    rate_S, batch_S = grid(RATES, BATCHES)
    cells_each = len(rate_S)
    count = len(found)
    sizes, samples = zip(*found)
    losses = [loss.ravel() for loss in found.values()]
    return {
        "n": np.repeat(sizes, cells_each),
        "d": np.repeat(samples, cells_each),
        "lr": np.tile(rate_S, count),
        "batch": np.tile(batch_S, count),
        "loss": np.concatenate(losses),
    }


def nearest(law: Steps, size: int, samples: int) -> tuple[int, int]:
    """The cell that the law says."""
    rate, batch = law.predict({"n": size, "d": samples})
    return place(RATES, rate), place(BATCHES, batch)


def place(values: np.ndarray, wanted: np.ndarray) -> int:
    """Where the value lies that is nearest in logarithms."""
    off = np.log(values / wanted)
    return int(np.abs(off).argmin())


def excess(loss: np.ndarray) -> np.ndarray:
    """Percent above the best cell."""
    return 100 * (loss / loss.min() - 1)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Mean excess at the pairs of most samples."""
    task = drawn(seed)
    *few, most = SAMPLES
    seen = {}
    for pair in itertools.product(SIZES, few):
        seen[pair] = cells(task, *pair)
    law = step_law(table(seen), Config())
    offs = [excess(loss) for loss in seen.values()]
    average = np.mean(offs, 0)
    lowest = average.argmin()
    constant = np.unravel_index(lowest, average.shape)
    by_law, by_constant = [], []
    for size in SIZES:
        off = excess(cells(task, size, most))
        cell = nearest(law, size, most)
        by_law.append(off[cell])
        by_constant.append(off[constant])
    return {"method": float(np.mean(by_law)), "baseline": float(np.mean(by_constant))}
