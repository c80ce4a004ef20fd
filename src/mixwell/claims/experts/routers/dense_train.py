"""DS-MoE: experts trained densely and run sparsely do better than experts trained as sparsely as they are run.

Paper: Dense Training, Sparse Inference: Rethinking Training of Mixture-of-Experts Language Models.
Tried: regression in sixteen clusters of unequal frequency, eight experts of which four serve a token at inference; all
eight in training with the mutual-information loss at 0.01, against top-4 in training too with the Switch loss.
Against it: a held-out error that is no lower after the same steps (dense steps cost twice as much).
"""

from __future__ import annotations

from functools import partial

from mixwell.claims._judging import ERROR
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import Clusters, errors
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Error of dense training against sparse training, both with four experts a token at inference."""
    problem = partial(Clusters, zipf=1.0)
    dense = {"router": {"method": "dense_train", "k": 4}, "balance": {"entropy": 0.01}}
    sparse = {"router": {"method": "top_k", "k": 4}, "balance": {"switch": 0.01}}
    method = errors(bench.seeds, dense, problem)
    baseline = errors(bench.seeds, sparse, problem)
    return weigh("Dense training with sparse inference beats sparse training.", ERROR, method, baseline,
                 note="At 0.01 and after 500 steps the gates are still soft, so that the four experts left out are "
                      "missed; the paper's gates have very much longer to sharpen.")
