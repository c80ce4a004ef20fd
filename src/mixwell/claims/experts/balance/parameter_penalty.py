"""HMoE: experts of unequal width with a penalty by size reach a lower loss with fewer activated parameters.

Paper: HMoE: Heterogeneous Mixture of Experts for Language Modeling.
Tried: regression in sixteen clusters of unequal frequency, top-2 of eight experts of mean width 32, widths 1 to 2.5 in
arithmetic steps and the penalty at 0.01, against equal widths with the Switch loss; hidden units computed a token after
300 steps. Against it: no fewer hidden units, or a higher error.
"""

from __future__ import annotations

from typing import Any

import torch

from mixwell.claims._judging import at_no_more_error
from mixwell.claims._series import series
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP2, Clusters, build, fit, squared_error, test
from mixwell.core.evidence import Evidence, weigh


def units(layer: Any, mixed: Any) -> float:
    """Hidden units computed a token."""
    widths = torch.tensor(layer.hidden_dims)
    computed = mixed.routing.load_E() @ widths
    return float(computed / len(mixed.routing.indices_TK))


def measure(seed: int, balance: str, ratio: float) -> tuple[float, float]:
    """(hidden units a token, error) of experts whose widths grow by `ratio`."""
    draw = Clusters(seed, zipf=1.0)
    rule = {balance: 0.01}
    layer = build(seed, {**TOP2, "balance": rule}, method="heterogeneous", ratio=ratio)
    fit(layer, draw, seed, steps=300)
    batch, mixed = test(layer, draw, seed)
    return units(layer, mixed), squared_error(mixed, batch)


def claim(bench: Bench) -> Evidence:
    """Hidden units of unequal experts with the penalty against equal ones."""
    method, ours = series(bench, measure, "parameter_penalty", 2.5)
    equal, theirs = series(bench, measure, "switch", 1.0)
    evidence = weigh("Unequal experts with a size penalty compute less at no higher loss.",
                     "hidden units computed a token", method, equal,
                     note="At 0.01 and after 300 steps the penalty does not bring the mean width below that of equal "
                          "experts.")
    return at_no_more_error(evidence, ours, theirs)
