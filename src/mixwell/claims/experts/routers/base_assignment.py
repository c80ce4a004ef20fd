"""BASE: tokens assigned to experts in exactly equal numbers need no balance loss, and train as well as Switch.

Paper: BASE Layers: Simplifying Training of Large, Sparse Models.
Tried: regression in sixteen clusters of unequal frequency, eight experts, one a token; against Switch's top-1 with its
balance loss. Against it: a held-out error that is no lower (the paper reports lower
perplexity than Switch, not only as good a one).
"""

from __future__ import annotations

from functools import partial

from mixwell.claims._judging import ERROR
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP1, Clusters, errors
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Error of balanced assignment against Switch's."""
    problem = partial(Clusters, zipf=1.0)
    method = errors(bench.seeds, {"router": {"method": "base_assignment"}, "balance": {}}, problem)
    baseline = errors(bench.seeds, TOP1, problem)
    return weigh("Balanced assignment without a balance loss beats Switch routing with one.", ERROR, method, baseline,
                 note="The most frequent cluster holds 30 % of the tokens, and exact balance spreads it over three "
                      "experts; at inference each token goes to its best expert, a choice that was not trained.")
