"""X-MoE: routing by cosine on a low-dimensional sphere lessens the collapse of representations that top-k brings.

Paper: On the Representation Collapse of Sparse Mixture of Experts.
Tried: the bench's language model with one expert a token; the scatter of hidden states within experts over the scatter
between them, cosine router against a linear one with the same balance loss. Against it: a ratio that is no higher, or
more than one per cent more bits per byte.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh
from mixwell.lab.bench import Bench
from mixwell.lab.claims.experts._judging import no_worse, provided
from mixwell.lab.claims.experts._language import SWITCH, bits, probe


def log_ratio(bench: Bench, model: Any) -> float:
    """Mean over layers of the logarithm of the scatter ratio; small where representations collapse."""
    collapse = registry.find("experts.analysis.collapse")
    found = (collapse.load()(seen.mixed.routing, seen.hidden_TD, collapse.module().Config(), seen.context)
             for seen in probe(bench, model))
    return statistics.fmean(math.log(one["scatter_ratio"] or math.inf) for one in found)


def claim(bench: Bench) -> Evidence:
    """Collapse under a cosine router against a linear one."""
    cosine: Mapping[str, Any] = {**SWITCH, "router": {"method": "cosine", "k": 1}}
    archs = [bench.arch(cosine), bench.arch(SWITCH)]
    ratios = [[log_ratio(bench, bench.train(arch, seed).model) for seed in bench.seeds] for arch in archs]
    losses = [bits(bench, arch) for arch in archs]
    evidence = weigh("Cosine routing lessens representation collapse.",
                     "log of within-expert over between-expert scatter of hidden states, mean over layers",
                     *ratios, lower_is_better=False)
    return provided(evidence, no_worse(*losses, 0.01), "Its bits per byte are more than one per cent higher.",
                    method_bits=losses[0], baseline_bits=losses[1])
