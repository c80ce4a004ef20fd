"""CompeteSMoE: a router that learns from competitions between experts' responses trains better experts than top-k.

Paper: CompeteSMoE -- Effective Training of Sparse Mixture of Experts via Competition.
Tried: regression in sixteen clusters of unequal frequency, eight experts, two a token, a competition on one step in
twenty; against softmax top-2 with the same balance loss. Against it: a held-out error that is no lower.
"""

from __future__ import annotations

from functools import partial

from mixwell.claims._judging import ERROR
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP2, Clusters, errors
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Error of competition against top-2."""
    problem = partial(Clusters, zipf=1.0)
    method = errors(bench.seeds, {**TOP2, "router": {"method": "competition", "k": 2}}, problem)
    baseline = errors(bench.seeds, TOP2, problem)
    return weigh("Competition trains a better mixture than softmax top-k.", ERROR, method, baseline,
                 note="Worse with every seed. A competition sends tokens to the experts that answer loudest, whatever "
                      "they were trained on, which unsettles the others' specialities on one step in twenty; 500 "
                      "steps are few for a claim on convergence.")
