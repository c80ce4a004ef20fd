"""Expert choice: experts that pick their tokens train faster than tokens that pick their experts.

Paper: Mixture-of-Experts with Expert Choice Routing.
Tried: regression in sixteen clusters of unequal frequency, eight experts, two a token on average, the same slots for
each expert; against top-2 with a balance loss and capacity factor 1 that drops what overflows, as in the paper's
baseline. Against it: a held-out error after the same steps that is no lower.
"""

from __future__ import annotations

from functools import partial

from mixwell.claims._judging import ERROR
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP2, Clusters, errors
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Error of expert choice against capacity-bound top-2."""
    problem = partial(Clusters, zipf=1.0)
    choice = {"router": {"method": "expert_choice", "capacity_factor": 2.0}, "balance": {}}
    method = errors(bench.seeds, choice, problem)
    baseline = errors(bench.seeds, {**TOP2, "capacity_factor": 1.0}, problem)
    return weigh("Expert choice reaches a lower loss than top-2 in the same steps.", ERROR, method, baseline,
                 note="Better with two seeds of three. A frequent cluster fills its expert's slots, and the tokens "
                      "left over are served by nobody, as under the baseline's capacity.")
