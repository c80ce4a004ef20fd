"""Importance-score routing: serving the tokens with the highest gate scores first loses less when room is short.

Paper: Cross-token Modeling with Conditional Computation.
Tried: regression in sixteen clusters, of which one holds half of the tokens and asks for nothing (its target is 0), as
background does; one of eight experts, capacity factor 0.5 in training and evaluation, Switch loss; by score against by
position. Against it: a held-out error that is no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import ERROR
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP1, Clusters, errors
from mixwell.core.evidence import Evidence, weigh


def background(seed: int) -> Clusters:
    """Clusters of which the first one holds half of the tokens, with target 0."""
    problem = Clusters(seed)
    problem.maps_CDD[0] = 0
    problem.shares_C[0] = problem.shares_C[1:].sum()
    return problem


def claim(bench: Bench) -> Evidence:
    """Error by score against by position, at half the room."""
    half = {**TOP1, "capacity_factor": 0.5}
    by_score = {"method": "priority", "by": "own"}
    by_position = {"method": "drop"}
    ours = errors(bench.seeds, {**half, "overflow": by_score}, background)
    theirs = errors(bench.seeds, {**half, "overflow": by_position}, background)
    return weigh("Serving high gate scores first loses less when room is short.", ERROR, ours, theirs)
