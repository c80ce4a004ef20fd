"""Online data mixing comes to a lower mean loss than even weights in as many steps.

Paper: Efficient Online Data Mixing For Language Model Pre-Training.
Tried: five domains whose losses fall by powers of the tokens seen, all of which can be learned, 400 steps of 64 tokens;
the mean of the five losses at the end. Baseline: even weights. Beside: both where the fifth domain is noise. Against
it: a loss that is no lower.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.data.online._learner import DOMAINS, trained, world
from mixwell.data.online.online_mixing import OnlineMixing
from mixwell.data.rule import Online

CLAIM = Claim("Rewards by loss choose better domains than even weights.", "mean loss in nats")


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """By the rule and evenly, without noise and with it."""
    found = {}
    for end, noise in (("", False), (" with noise", True)):
        rng = np.random.default_rng([seed, 52])
        here = world(rng, noise)
        for side, even in (("method", False), ("baseline", True)):
            online = Online(OnlineMixing(DOMAINS))
            seen_D = trained(here, online, np.zeros(DOMAINS), rng, even)
            found[side + end] = float(here.losses(seen_D).mean())
    return found
