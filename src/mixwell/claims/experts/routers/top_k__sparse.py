"""Sparse gating: few whole experts a token do better than all experts a little, at the same computation.

Paper: A Survey on Mixture of Experts, which orders gating into sparse, dense and soft; on the method top_k.
Tried: regression in sixteen clusters of unequal frequency; top-2 of eight experts of width 32 against all of eight
experts of width 8 (dense gating, equal FLOPs). Against it: a held-out error that is no lower.
"""

from __future__ import annotations

from functools import partial

from mixwell.claims._judging import ERROR
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP2, Clusters, errors
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Error of sparse gating against dense gating."""
    problem = partial(Clusters, zipf=1.0)
    router = {"method": "top_k", "k": 8}
    every = {"router": router, "balance": {}}
    sparse = errors(bench.seeds, TOP2, problem)
    dense = errors(bench.seeds, every, problem, hidden_dim=8)
    return weigh("Sparse gating beats dense gating at equal compute.", ERROR, sparse, dense)
