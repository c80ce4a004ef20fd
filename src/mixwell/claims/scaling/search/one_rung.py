"""One epoch for all and the rest for three finds a configuration as good as training all to the end.

Paper: Is One Epoch All You Need For Multi-Fidelity Hyperparameter Optimization?
Tried: 96 small networks on digits over learning rate, start and decay, 27 epochs; mean over 100 draws of 32. Baseline:
the same draws trained to the end, for nine times the epochs. Against it: a point of error more or above.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.scaling.search._digits import table
from mixwell.scaling.search.one_rung import Config, one_rung
from mixwell.scaling.trials import Trials

CLAIM = Claim("One epoch is enough to choose whom to train.", "validation error", at_least=-0.01)
DRAWS, CANDIDATES = 100, 32


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Both errors."""
    losses_NR, _ = table(seed)
    means = {}
    for side, keep in (("method", 3), ("baseline", CANDIDATES)):
        config = Config(candidates=CANDIDATES, keep=keep)
        found = []
        for draw in range(DRAWS):
            draws = np.random.default_rng([seed, draw])
            ended = one_rung(Trials.tabulated(losses_NR), config, draws)
            found.append(ended.loss)
        means[side] = float(np.mean(found))
    return means
