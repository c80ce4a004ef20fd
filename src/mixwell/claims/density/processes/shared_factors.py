"""Shared Gaussian-process factors: noisy recordings of several subjects give away the courses behind them.

Paper: Time-Resolved fMRI Shared Response Model using Gaussian Process Factor Analysis.
Tried: three subjects of 20 channels and 100 times, three courses of length scales 3, 6 and 12 with loadings of their
own, signal a tenth of the noise's variance; mean squared correlation of the true courses with the best mix of those
found (R^2), against factor analysis of all channels smoothed beforehand, the width of smoothing (0 among them) chosen
on the tuning seed like the method's first length scale. Against it: an R^2 that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.density._data import quietly
from mixwell.core.registry import find

TIMES, CHANNELS, SUBJECTS = 100, 20, 3
SCALES = (3.0, 6.0, 12.0)
SIGNAL = 0.1  # variance of signal over variance of noise
Array = np.ndarray


def recorded(seed: int) -> tuple[Array, list[Array]]:
    """Courses (TIMES, 3) and recordings (TIMES, CHANNELS) of every subject."""
    rng = np.random.default_rng(seed)
    t = np.arange(TIMES)
    gaps = t[:, None] - t
    courses = []
    for scale in SCALES:
        covariance = np.exp(-0.5 * (gaps / scale) ** 2)
        covariance[t, t] += 1e-6
        root = np.linalg.cholesky(covariance)
        courses.append(root @ rng.normal(size=TIMES))
    x = np.stack(courses, 1)
    recordings = []
    for _ in range(SUBJECTS):
        loadings = rng.normal(size=(3, CHANNELS)) * np.sqrt(SIGNAL / 3)
        noise = rng.normal(size=(TIMES, CHANNELS))
        recordings.append(x @ loadings + noise)
    return x, recordings


def explained(found: Array, x: Array) -> float:
    """Mean R^2 of the courses by a linear mix of those found."""
    from sklearn.linear_model import LinearRegression

    model = LinearRegression()
    return float(model.fit(found, x).score(found, x))


def by_processes(bench: Bench, seed: int, *, length_scale: float) -> float:
    """R^2 of shared Gaussian-process factors."""
    x, recordings = recorded(seed)
    estimator = find("density.processes.shared_factors").load()
    model = estimator(n_factors=3, length_scale=length_scale, max_iter=25)
    model.fit(recordings)
    return explained(model.factors_, x)


def by_smoothing(bench: Bench, seed: int, *, width: float) -> float:
    """R^2 of factor analysis after a Gaussian filter along time."""
    from scipy.ndimage import gaussian_filter1d
    from sklearn.decomposition import FactorAnalysis

    x, recordings = recorded(seed)
    joined = np.concatenate(recordings, axis=1)
    smooth = gaussian_filter1d(joined, width, axis=0) if width else joined
    model = FactorAnalysis(3)
    with quietly():
        found = model.fit_transform(smooth)
    return explained(found, x)


CLAIM = Claim("Factors that are Gaussian processes in time recover shared courses better than smoothing beforehand.",
              "R^2 of the true courses", lower_is_better=False,
              sides={"method": Side(by_processes, grid={"length_scale": [2.0, 4.0, 6.0, 10.0]}),
                     "baseline": Side(by_smoothing, grid={"width": [0.0, 1.0, 2.0, 4.0]})})
