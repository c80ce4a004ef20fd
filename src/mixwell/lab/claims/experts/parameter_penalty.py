"""HMoE: experts of unequal width with a penalty by size reach a lower loss with fewer activated parameters.

Paper: HMoE: Heterogeneous Mixture of Experts for Language Modeling.
Tried: regression in sixteen clusters of unequal frequency, top-2 of eight experts of mean width 32, widths 1 to 2.5 in
arithmetic steps and the penalty at 0.01, against equal widths with the Switch loss; hidden units computed a token.
Against it: no fewer hidden units, or a higher error. The same unequal experts without the penalty stand beside.
"""

from __future__ import annotations

from typing import Any

import torch

from mixwell.core.evidence import Evidence, weigh
from mixwell.lab.bench import Bench
from mixwell.lab.claims.experts._judging import no_worse, provided
from mixwell.lab.claims.experts._synthetic import TOP2, Clusters, build, error, fit, test


def measure(seed: int, balance: dict[str, float], **options: Any) -> tuple[float, float]:
    """(hidden units a token, error)."""
    draw = Clusters(seed, zipf=1.0)
    layer = fit(build(seed, {**TOP2, "balance": balance}, method="heterogeneous", **options), draw, seed)
    _, mixed = test(layer, draw, seed)
    load = mixed.routing.load_E().double()
    widths = torch.tensor(layer.hidden_dims, dtype=torch.float64)
    return float(load @ widths / mixed.routing.indices_TK.shape[0]), error(layer, draw, seed)


def claim(bench: Bench) -> Evidence:
    """Hidden units of unequal experts with the penalty against equal ones."""
    method = [measure(seed, {"parameter_penalty": 0.01}) for seed in bench.seeds]
    equal = [measure(seed, {"switch": 0.01}, ratio=1.0) for seed in bench.seeds]
    free = [measure(seed, {}) for seed in bench.seeds]
    evidence = weigh("Unequal experts with a size penalty compute less at no higher loss.",
                     "hidden units computed a token", [m[0] for m in method], [e[0] for e in equal])
    ours, theirs = [m[1] for m in method], [e[1] for e in equal]
    return provided(evidence, no_worse(ours, theirs, 0.0), "Its error is higher.", method_error=ours,
                    baseline_error=theirs, without_penalty=[f[0] for f in free])
