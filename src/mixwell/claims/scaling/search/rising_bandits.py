"""Rising bandits spend fewer pulls on arms that lose than pulling all arms in turn.

Paper: Efficient Automatic CASH via Rising Bandits.
Tried: six arms, each a range of learning rates of 16 small networks on digits in random order, a pull a network; 100
orders, 60 pulls; pulls of arms whose best network is not the best of all. Baseline: all arms in turn. Against it: less
than a tenth of those pulls saved.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.scaling.search._digits import table
from mixwell.scaling.search.rising_bandits import Config, rising_bandits
from mixwell.scaling.trials import Trials

CLAIM = Claim("Rising bandits leave losing arms.", "pulls of losing arms", at_least=0.1, relative=True)
ARMS, PULLS, DRAWS = 6, 60, 100


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Mean pulls of losing arms."""
    losses_NR, features_ND = table(seed)
    by_rate_N = features_ND[:, 0].argsort()
    arms_AN = by_rate_N.reshape(ARMS, -1)
    end_AN = losses_NR[arms_AN, -1]
    winner = end_AN.min(1).argmin()
    wasted = []
    for draw in range(DRAWS):
        draws = np.random.default_rng([seed, draw])
        order_AN = draws.permuted(end_AN, axis=1)
        trials = Trials.tabulated(order_AN)
        found = rising_bandits(trials, Config(pulls=PULLS), draws)
        wasted.append(found.spent - trials.reached_N[winner])
    even = PULLS * (ARMS - 1) / ARMS
    return {"method": float(np.mean(wasted)), "baseline": even}
