"""Trained routers pick experts that answer with larger norms.

Paper: A Closer Look into Mixture-of-Experts in Large Language Models.
Tried: the bench's language model, top-2 of eight experts; share of the choices on held-out text that are among the two
experts of largest output norm, mean over layers, against chance. Against it: a share at chance or below.
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
    norms = seen.mixer.responses(seen.hidden_TD)
    return call("experts.analysis.output_norm", seen.mixed.routing, norms, context=seen.context)


CLAIM = Claim("Routers pick experts with larger output norms.",
              "share of choices among the two largest output norms",
              lower_is_better=False)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Choices among the largest norms against chance."""
    trained = from_trunk(bench, seed)
    layers = probe(bench, trained.model)
    found = [analysed(seen) for seen in layers]
    hits = mean_over(found, itemgetter("hits"))
    chance = mean_over(found, itemgetter("chance"))
    return {"method": hits, "baseline": chance}
