"""PERFT: adapters beside a mixture that have a router of their own beat one adapter that every token visits.

Paper: PERFT: Parameter-Efficient Routed Fine-Tuning for Mixture-of-Expert Model.
Tried: a decoder of four experts that knows three tasks on strings, frozen, and adapted to moving letters on by four
distances, each named by a word: eight adapters of rank 2 beside each mixture, two for a token, against one of rank 4,
which has as many numbers at work. Beside: an adapter of rank 4 for each frozen expert, routed with it. Rates of their
own. Cross-entropy of answers to new strings. Against it: one that is no lower.
"""

from __future__ import annotations

from mixwell.adapters import perft as method
from mixwell.claims.adapters._tasks import NATS, learnt, mixture
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side


def measure(bench: Bench, seed: int, *, lr: float, config: method.Config) -> dict[str, float]:
    """Loss, share right, and numbers trained."""
    return learnt(mixture(seed), seed, method.PERFT, config, None, lr)


GRID = {"lr": (3e-3, 1e-2, 2e-2, 4e-2)}
OWN = method.Config(variant="R", num_adapters=8, rank=2, alpha=4.0)
SINGLE = method.Config(variant="S", rank=4, alpha=8.0)
EMBEDDED = method.Config(variant="E", rank=4, alpha=8.0)
CLAIM = Claim("Adapters with a router of their own beat one that every token visits.", NATS, quantity="nats",
              sides={"method": Side(measure, {"config": OWN}, GRID),
                     "baseline": Side(measure, {"config": SINGLE}, GRID),
                     "one an expert": Side(measure, {"config": EMBEDDED}, GRID)})
