"""Mixtral: consecutive tokens are sent to the same expert more often than chance.

Paper: Mixtral of Experts.
Tried: the bench's language model, top-2 of eight experts; share of neighbours in held-out text with the same first
choice, mean over layers, against chance at the observed load (which is above the paper's 1 / 8, and so harder to beat).
Against it: a share at chance or below.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from mixwell.claims._methods import call
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.language import Seen, from_trunk, mean_over, probe


def analysed(seen: Seen) -> dict[str, Any]:
    """The analysis of one layer."""
    return call("experts.analysis.repetition", seen.mixed.routing, context=seen.context)


CLAIM = Claim("Consecutive tokens go to the same expert more often than chance.",
              "share of neighbours with the same first choice; baseline is chance at the observed load",
              lower_is_better=False)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Repeated first choices against chance."""
    trained = from_trunk(bench, seed)
    layers = probe(bench, trained.model)
    found = [analysed(seen) for seen in layers]
    repeated = mean_over(found, itemgetter("first"))
    chance = mean_over(found, itemgetter("first_chance_at_load"))
    return {"method": repeated, "baseline": chance}
