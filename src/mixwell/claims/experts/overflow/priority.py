"""Importance-score routing: serving the tokens with the highest gate scores first loses less when room is short.

Paper: Cross-token Modeling with Conditional Computation.
Tried: regression in sixteen clusters, of which one holds half of the tokens and asks for nothing (its target is 0), as
background does; one of eight experts, capacity factor 0.5 in training and evaluation, Switch loss; by score against by
position. Against it: a held-out error that is no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import ERROR
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._synthetic import BALANCED, TOP1, Clusters, on_problem


def background(seed: int) -> Clusters:
    """Clusters of which the first one holds half of the tokens, with target 0."""
    problem = Clusters(seed)
    problem.maps_CDD[0] = 0
    problem.shares_C[0] = problem.shares_C[1:].sum()
    return problem


HALF = {**TOP1, "capacity_factor": 0.5, "problem": background}
RULES = {"method": {"method": "priority", "by": "own"}, "baseline": {"method": "drop"}}

CLAIM = Claim(
    "Serving high gate scores first loses less when room is short.", ERROR, quantity="error",
    sides={name: Side(on_problem, {**HALF, "overflow": rule}, BALANCED) for name, rule in RULES.items()})
