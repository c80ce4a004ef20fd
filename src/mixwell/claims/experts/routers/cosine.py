"""X-MoE: routing by cosine on a low-dimensional sphere lessens the collapse of representations that top-k brings.

Paper: On the Representation Collapse of Sparse Mixture of Experts.
Tried: the bench's language model with one expert a token; the scatter of hidden states within experts over the scatter
between them, cosine router against a linear one with the same balance loss. Against it: a ratio that is no higher, or
more than one per cent more bits per byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims._judging import at_no_more_bits
from mixwell.claims.bench import Bench
from mixwell.claims.language import SWITCH, bits, log_scatter_ratio, models
from mixwell.core.evidence import Evidence, weigh


def collapse(bench: Bench, arch: dict[str, Any]) -> list[float]:
    """Logarithm of the scatter ratio of a trained model, from each seed."""
    return [log_scatter_ratio(bench, model) for model in models(bench, arch)]


def claim(bench: Bench) -> Evidence:
    """Collapse under a cosine router against a linear one."""
    cosine: Mapping[str, Any] = {**SWITCH, "router": {"method": "cosine", "k": 1}}
    method, baseline = bench.arch(cosine), bench.arch(SWITCH)
    scatter, scatter_before = collapse(bench, method), collapse(bench, baseline)
    evidence = weigh("Cosine routing lessens representation collapse.",
                     "log of within-expert over between-expert scatter of hidden states, mean over layers",
                     scatter, scatter_before, lower_is_better=False)
    ours, theirs = bits(bench, method), bits(bench, baseline)
    return at_no_more_bits(evidence, ours, theirs, margin=0.01)
