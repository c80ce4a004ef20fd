"""DoReMi takes weight from a domain that nobody can learn, where the same rule without a reference gives it all.

Paper: DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining.
Tried: five domains whose losses fall by powers of the tokens seen, the fifth of them noise at 6 nats; a proxy that sees
all evenly for 400 steps, the reference being its losses at the end; the noise's weight in the result. Baseline: the
same rule against a reference of nought. Against it: a weight that is not half as large, or one above a fifth.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.claims.data.online._learner import DOMAINS, NOISE, STEPS, TOKENS, trained, world
from mixwell.data.online.doremi import Config, DoReMi
from mixwell.data.rule import Online

CLAIM = Claim("A reference keeps weight from what cannot be learned.", "weight of the noise", at_least=0.5,
              relative=True, provided=(Comparison(baseline=0.2),))


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """With the reference, and without."""
    rng = np.random.default_rng([seed, 51])
    here = world(rng)
    each = STEPS * TOKENS / DOMAINS
    ended_D = here.losses(np.full(DOMAINS, each))
    found = {}
    for side, reference_D in (("method", ended_D), ("baseline", np.zeros(DOMAINS))):
        online = Online(DoReMi(DOMAINS, Config(step_size=0.1, vocab_size=64)))
        trained(here, online, reference_D, rng, even=True)
        found[side] = float(online.result_D[NOISE])
    return found
