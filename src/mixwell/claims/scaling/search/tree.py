"""Walks in a tree of decisions, and a linear surrogate, find better networks than random search.

Paper: DeepArchitect: Automatically Designing and Training Deep Architectures.
Tried: 96 small networks on digits, a grid of eight learning rates, four starts and three decays, six epochs each;
validation error of the best of 24 that are asked, in the mean of 60 searches over the same table. Method: walks,
options decided by halves. Baseline: random. Beside: the surrogate, on the same decisions. Against it: an error that is
no lower, or the surrogate's being no lower than random search's.
"""

from __future__ import annotations

import numpy as np
import torch

from mixwell.claims._series import mean
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.claims.scaling.search import _digits
from mixwell.core.rng import generator
from mixwell.scaling.search.tree import Config, tree
from mixwell.scaling.spaces import listed, space
from mixwell.scaling.trials import Trials

CLAIM = Claim("Walks in the tree find better networks than random search.", "validation error",
              provided=(Comparison(method="surrogate"),))
RATES = [10 ** (-2.5 + 0.5 * place) for place in range(8)]
STARTS, DECAYS = [0.03, 0.1, 0.3, 1.0], [1e-5, 1e-3, 1e-1]
GRID = {"method": "network", "rate": RATES, "start": STARTS, "decay": DECAYS}
EPOCHS, SEARCHES, ASKED = 6, 60, 24


def table(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Validation errors of every way, [96, 1], and its decisions."""
    taken_ND, every = listed(space(GRID), halves=True)
    columns = []
    for name in ("rate", "start", "decay"):
        column = [block[name] for block, in every]
        columns.append(torch.tensor(column))
    rates_N, starts_N, decays_N = columns
    draws = generator(seed, "tree digits")
    images, classes = _digits._digits(draws)
    into = _digits._start(starts_N, 64, _digits.HIDDEN, draws)
    out = _digits._start(starts_N, _digits.HIDDEN, 10, draws)
    weights = [into, out]
    for _ in range(EPOCHS):
        order = torch.randperm(_digits.TRAINED, generator=draws)
        for some in order.split(_digits.BATCH):
            weights = _digits._stepped(weights, images[some], classes[some], rates_N, decays_N)
    held = slice(_digits.TRAINED, None)
    error_N = _digits._errors(weights, images[held], classes[held])
    return error_N.double().numpy()[:, None], taken_ND


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Mean error of what each kind of search finds."""
    losses, taken_ND = table(seed)
    found = {}
    for side, kind in (("method", "walks"), ("surrogate", "surrogate"), ("baseline", "random")):
        config = Config(kind=kind, evaluations=ASKED)
        ended = []
        for search in range(SEARCHES):
            trials = Trials.tabulated(losses, taken_ND)
            draws = np.random.default_rng([seed, search])
            best = tree(trials, config, draws)
            ended.append(best.loss)
        found[side] = mean(ended)
    return found
