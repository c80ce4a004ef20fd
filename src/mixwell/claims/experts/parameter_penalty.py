"""HMoE: experts of unequal width with a penalty by size reach a lower loss with fewer activated parameters.

Paper: HMoE: Heterogeneous Mixture of Experts for Language Modeling.
Tried: regression in sixteen clusters of unequal frequency, top-2 of eight experts of mean width 32, widths 1 to 2.5 in
arithmetic steps and the penalty at 0.01, against equal widths with the Switch loss; hidden units computed a token after
300 steps. Against it: no fewer hidden units, or a higher error.
"""

from __future__ import annotations

import torch

from mixwell.claims._judging import no_worse, provided
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP2, Clusters, build, error, fit, test
from mixwell.core.evidence import Evidence, weigh


def measure(seed: int, balance: str, ratio: float) -> tuple[float, float]:
    """(hidden units a token, error) of experts whose widths grow by `ratio`."""
    draw = Clusters(seed, zipf=1.0)
    layer = build(seed, {**TOP2, "balance": {balance: 0.01}}, method="heterogeneous", ratio=ratio)
    _, mixed = test(fit(layer, draw, seed, steps=300), draw, seed)
    widths = torch.tensor(layer.hidden_dims)
    return float(mixed.routing.load_E() @ widths / mixed.routing.indices_TK.shape[0]), error(layer, draw, seed)


def claim(bench: Bench) -> Evidence:
    """Hidden units of unequal experts with the penalty against equal ones."""
    method = [measure(seed, "parameter_penalty", 2.5) for seed in bench.seeds]
    equal = [measure(seed, "switch", 1.0) for seed in bench.seeds]
    evidence = weigh("Unequal experts with a size penalty compute less at no higher loss.",
                     "hidden units computed a token", [m[0] for m in method], [e[0] for e in equal],
                     note="At 0.01 and after 300 steps the penalty does not bring the mean width below that of equal "
                          "experts.")
    ours, theirs = [m[1] for m in method], [e[1] for e in equal]
    return provided(evidence, no_worse(ours, theirs, 0.0), "Its error is higher.", method_error=ours,
                    baseline_error=theirs)
