"""Noisy top-k gating: the smooth estimate of the load that noise allows balances the experts when trained on.

Paper: Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer.
Tried: regression in sixteen equally frequent clusters, noisy top-2 of eight experts; load loss at 0.1 against none;
busiest expert's load on fresh tokens without noise. Against it: a load that is no more even, or an error more than
5 % higher (the paper reports a lower perplexity).
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._judging import at_no_more_error
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import balance_and_error
from mixwell.core.evidence import Evidence, weigh


def gate(load: float) -> dict[str, Any]:
    """Noisy top-2 with this coefficient of the load loss."""
    return {"router": {"method": "noisy_top_k", "k": 2, "load": load}, "balance": {}}


def claim(bench: Bench) -> Evidence:
    """Busiest load with and without the load loss."""
    with_loss, without = gate(0.1), gate(0.0)
    method, ours = balance_and_error(bench.seeds, with_loss)
    baseline, theirs = balance_and_error(bench.seeds, without)
    evidence = weigh("The load loss of noisy gating balances experts.", "busiest expert's load over the mean load",
                     method, baseline)
    return at_no_more_error(evidence, ours, theirs, margin=0.05)
