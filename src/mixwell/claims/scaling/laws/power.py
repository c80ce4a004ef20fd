"""Forecasters of more features gain at the same rate on series like those learned from and on series of other kinds.

Paper: Towards Neural Scaling Laws for Time Series Foundation Models.
Tried: ridge regression on 8 to 512 random features of the last eight values, learned from noisy threshold
autoregressions whose slopes lie in one range, tested on series of that range and of another; loss is the squared error
above the noise over that of repeating the last value, and the exponent that of the law. Method: how far the exponents
are apart, in and out of the range. Against it: 0.1 or more.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.scaling.laws._planted import law_of

CLAIM = Claim("Exponents agree in and out of distribution.", "difference of the exponents", baseline=0.1)
WINDOW, NOISE, SERIES, LENGTH = 8, 0.1, 300, 40
FEATURES = 2 ** np.arange(3, 10)
WITHIN, OUTSIDE = (0.2, 0.7), (0.7, 0.9)
Task = tuple[np.ndarray, np.ndarray]


def series(rng: np.random.Generator, slopes: tuple[float, float]) -> Task:
    """Windows [N, 8] and the next values without their noise [N]."""
    rise, fall = rng.uniform(*slopes, (2, SERIES))
    steps = WINDOW + LENGTH
    values = np.zeros((SERIES, steps))
    means = np.zeros_like(values)
    values[:, 0] = rng.standard_normal(SERIES)
    for t in range(1, steps):
        last = values[:, t - 1]
        slope = np.where(last > 0, -fall, rise)
        pulled = slope * last
        means[:, t] = 0.5 + 1.5 * pulled
        noise = rng.standard_normal(SERIES)
        values[:, t] = means[:, t] + NOISE * noise
    before = values[:, :-1]
    windows = np.lib.stride_tricks.sliding_window_view(before, WINDOW, axis=1)
    rows = windows.reshape(-1, WINDOW)
    after = means[:, WINDOW:]
    return rows, after.ravel()


def losses(rng: np.random.Generator, learned: Task, tested: list[Task]) -> np.ndarray:
    """Loss over that of repeating the last value: [features, tests]."""
    x, y = learned
    noisy = y + NOISE * rng.standard_normal(len(y))
    most = FEATURES[-1]
    weights = rng.standard_normal((WINDOW, most))
    shift = rng.standard_normal(most)
    found = np.empty((len(FEATURES), len(tested)))
    for row, count in enumerate(FEATURES.tolist()):
        some, shifts = weights[:, :count], shift[:count]
        phi = features(x, some, shifts)
        readout = ridge(phi, noisy)
        for place, (x_test, y_test) in enumerate(tested):
            told = features(x_test, some, shifts) @ readout
            naive = x_test[:, -1]
            found[row, place] = square(told - y_test) / square(naive - y_test)
    return found


def ridge(phi: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least squares with a small penalty: [features]."""
    gram = phi.T @ phi
    penalty = 1e-3 * np.eye(len(gram))
    return np.linalg.solve(gram + penalty, phi.T @ y)


def features(x: np.ndarray, weights: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Rectified random projections: [N, features]."""
    inner = x @ weights + shift
    return np.maximum(inner, 0)


def square(error_N: np.ndarray) -> float:
    """Mean square."""
    return float(np.mean(error_N**2))


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """How far the two exponents are apart."""
    rng = np.random.default_rng([seed, 14])
    learned = series(rng, WITHIN)
    tested = [series(rng, WITHIN), series(rng, OUTSIDE)]
    found = losses(rng, learned, tested)
    law = law_of("power")
    exponents = []
    for loss in found.T:
        fit = law.fit({"x": FEATURES, "loss": loss})
        exponents.append(fit.parameters["k"])
    inside, outside = exponents
    return {"method": abs(inside - outside)}
