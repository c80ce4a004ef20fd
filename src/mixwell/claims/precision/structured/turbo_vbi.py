"""Turbo-VBI: weights in runs are found with less error by a chain of supports than by independent ones.

Paper: Structured Bayesian Compression for Deep Neural Networks Based on The Turbo-VBI Approach.
Tried: regression on 50 rows of 100 columns, 16 weights of 1 or -1 in four runs, noise at 16 dB below the signal; the
chain against the same algorithm with an independent prior of the same share. Beside: the lasso with its penalty chosen
by cross-validation, and both priors where the support is scattered.
Against it: a squared error that is no lower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.rng import generator
from mixwell.precision.structured.turbo_vbi import Config, regression

ROWS, COLUMNS, RUNS, LONG = 50, 100, 4, 4
START, STOP = 0.04, 0.21  # of the chain: 16 % active, in runs of 4.8
Problem = tuple[Tensor, Tensor, Tensor]

CLAIM = Claim("Runs of weights are found with less error by a chain.", "squared error, share of the weights' square")


def problem(seed: int, scattered: bool) -> Problem:
    """X [N, I], y [N] and the weights [I]."""
    draws = generator(seed, "runs", str(scattered))
    w = torch.zeros(COLUMNS, dtype=torch.float64)
    places = torch.randperm(COLUMNS, generator=draws)
    places = places[: RUNS * LONG]
    if not scattered:
        places = _in_runs(draws)
    values = torch.randn(len(places), generator=draws, dtype=torch.float64)
    w[places] = values.sign()
    X = torch.randn(ROWS, COLUMNS, generator=draws, dtype=torch.float64)
    clean = X @ w
    noise = torch.randn(ROWS, generator=draws, dtype=torch.float64)
    quiet = 10 ** (-16 / 20) * clean.std()
    return X, clean + quiet * noise, w


def _in_runs(draws: torch.Generator) -> Tensor:
    """Places of as many runs, each somewhere in its part of the columns."""
    block = COLUMNS // RUNS
    offsets = torch.randint(block - LONG, (RUNS,), generator=draws)
    parts = torch.arange(RUNS)
    starts = offsets + block * parts
    along = torch.arange(LONG)
    places = starts[:, None] + along
    return places.flatten()


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Errors of both priors on runs and on scattered weights, and of the lasso."""
    runs = problem(seed, False)
    scattered = problem(seed, True)
    found = {"method": _error(runs, True), "baseline": _error(runs, False)}
    found["lasso"] = _lasso(runs)
    found["chain, scattered"] = _error(scattered, True)
    found["independent, scattered"] = _error(scattered, False)
    return found


def _error(given: Problem, chain: bool) -> float:
    X, y, w = given
    fit = regression(X, y, Config(start=START, stop=STOP, chain=chain))
    return _share(fit.mean, w)


def _share(found: Tensor, w: Tensor) -> float:
    missed = (found - w).square().sum()
    return float(missed / w.square().sum())


def _lasso(given: Problem) -> float:
    from sklearn.linear_model import LassoCV

    X, y, w = given
    fit = LassoCV(cv=5, fit_intercept=False).fit(X.numpy(), y.numpy())
    return _share(torch.from_numpy(fit.coef_), w)
