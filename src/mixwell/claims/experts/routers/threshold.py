"""XMoE: many small experts chosen until a share of the probability is reached halve the computation without loss.

Paper: Enhancing Efficiency in Sparse Models with Sparser Selection.
Tried: regression in sixteen clusters of unequal frequency; 32 experts of width 8, as many as reach 0.9 of the
probability, against top-2 of eight experts of width 32 (equal parameters, equal balance loss); hidden units computed
a token. Against it: more than half of the baseline's hidden units, or an error more than 5 % higher.
"""

from __future__ import annotations

from functools import partial

from mixwell.claims._judging import at_no_more_error
from mixwell.claims._series import series
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP2, Clusters, build, errors, fit, squared_error, test
from mixwell.core.evidence import Evidence, weigh


def measure(seed: int) -> tuple[float, float]:
    """(hidden units a token, error) of threshold routing."""
    draw = Clusters(seed, zipf=1.0)
    router = {"method": "threshold", "threshold": 0.9}
    spec = {**TOP2, "router": router}
    layer = build(seed, spec, num_experts=32, hidden_dim=8)
    fit(layer, draw, seed)
    batch, mixed = test(layer, draw, seed)
    served = mixed.routing.indices_TK >= 0
    experts = served.sum(1).float()
    units = 8 * float(experts.mean())
    return units, squared_error(mixed, batch)


def claim(bench: Bench) -> Evidence:
    """Hidden units of threshold routing against half of the baseline's."""
    method, ours = series(bench, measure)
    theirs = errors(bench.seeds, TOP2, partial(Clusters, zipf=1.0))
    evidence = weigh("Threshold routing halves the computation at equal loss.",
                     "hidden units computed a token; baseline is half of top-2's 64", method, [32.0] * len(method),
                     note="After 500 steps the router is flat: 0.9 of its probability lies on some 22 of 32 experts. "
                          "The error is lower than top-2's because three times as much is computed.")
    return at_no_more_error(evidence, ours, theirs, margin=0.05)
