"""Importance and load losses: without them the gate favours a few experts, with them the load is even and quality up.

Paper: Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer.
Tried: regression in sixteen equally frequent clusters, top-2 of eight experts, both losses at 0.1 against none; busiest
expert's load on fresh tokens. Against it: a load that is no more even, or an error more than 5 % higher.
"""

from __future__ import annotations

from mixwell.claims._judging import at_no_more_error
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP2, balance_and_error
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Busiest load with and without the losses."""
    balanced = {**TOP2, "balance": {"importance_load": 0.1}}
    free = {**TOP2, "balance": {}}
    method, ours = balance_and_error(bench.seeds, balanced)
    baseline, theirs = balance_and_error(bench.seeds, free)
    evidence = weigh("Importance and load losses even out the experts.", "busiest expert's load over the mean load",
                     method, baseline)
    return at_no_more_error(evidence, ours, theirs, margin=0.05)
