"""Functional Tucker decomposition: smaller errors than a Tucker decomposition of indexes put into bins.

Paper: Functional Bayesian Tucker Decomposition for Continuous-indexed Tensor Data.
Tried: 150 entries at random places of a cube, from a core of normal numbers of two sine waves in each of three modes,
noise 5 % of the standard deviation; root mean squared error at 500 fresh places, over their standard deviation. The
rival is the same model with each mode's indexes in equal bins that tell nothing of each other; the kernel's length and
the number of bins are tuned alike. Condition: a smaller error than of scikit-learn's Gaussian process with a Matern
kernel, a length for each mode and noise, by maximum likelihood. Against it: an error that is no smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.density._data import quietly
from mixwell.density.processes.functional_tucker import FunctionalTucker

ROWS, FRESH, MODES, RANK = 150, 500, 3, 2
START: dict[str, Any] = {"n_init": 2, "max_iter": 30}
APART = 1e-3  # a length at which neighbouring bins know nothing of each other


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (N, 3) and values (N,) without noise."""
    rng = np.random.default_rng(seed)
    place = rng.random((ROWS + FRESH, MODES))
    core = rng.normal(size=(RANK, RANK, RANK))
    waves = []
    for column in place.T:
        frequency = rng.uniform(0.5, 1.5, RANK)
        phase = rng.random(RANK)
        turns = column[:, None] * frequency + phase
        angle = 2 * np.pi * turns
        waves.append(np.sin(angle))
    value = np.einsum("abc,na,nb,nc->n", core, *waves)
    return place, value


def error(model: Any, place: np.ndarray, value: np.ndarray, seed: int) -> float:
    """Root mean squared error at fresh places, over the values' standard deviation."""
    rng = np.random.default_rng(seed + 1000)
    noise = rng.normal(size=ROWS)
    known, wanted = np.split(value, [ROWS])
    seen, fresh = np.split(place, [ROWS])
    noisy = known + 0.05 * value.std() * noise
    with quietly():
        model.fit(seen, noisy)
    gap = model.predict(fresh) - wanted
    error_ = np.sqrt(np.mean(gap**2))
    return float(error_ / wanted.std())


def by_functions(bench: Bench, seed: int, *, length: float) -> float:
    """The error with indexes as they are."""
    place, value = draw(seed)
    model = FunctionalTucker(rank=RANK, length=length, **START, random_state=seed)
    return error(model, place, value, seed)


def by_bins(bench: Bench, seed: int, *, bins: int) -> float:
    """The error with every index rounded to the middle of its bin."""
    place, value = draw(seed)
    scaled = place * bins
    middle = np.floor(scaled) + 0.5
    middle = middle / bins
    model = FunctionalTucker(rank=RANK, kernel="matern12", length=APART, **START, random_state=seed)
    return error(model, middle, value, seed)


def by_process(bench: Bench, seed: int) -> float:
    """The error of a Gaussian process over the cube."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    kernel = ConstantKernel() * Matern(np.full(MODES, 0.3), nu=1.5) + WhiteKernel(0.01)
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
    place, value = draw(seed)
    return error(model, place, value, seed)


PROCESS = Comparison(baseline="Gaussian process")
CLAIM = Claim("Functions of continuous indexes predict better than bins do.", "error, share of the standard deviation",
              provided=(PROCESS,),
              sides={"method": Side(by_functions, {}, {"length": (0.25, 0.5, 1.0, 2.0)}),
                     "baseline": Side(by_bins, {}, {"bins": (4, 6, 10, 20)}),
                     "Gaussian process": Side(by_process)})
