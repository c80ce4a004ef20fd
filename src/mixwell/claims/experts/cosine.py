"""X-MoE: routing by cosine on a low-dimensional sphere lessens the collapse of representations that top-k brings.

Paper: On the Representation Collapse of Sparse Mixture of Experts.
Tried: the bench's language model with one expert a token; the scatter of hidden states within experts over the scatter
between them, cosine router against a linear one with the same balance loss. Against it: a ratio that is no higher, or
more than one per cent more bits per byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims._judging import no_worse, provided
from mixwell.claims.bench import Bench
from mixwell.claims.language import SWITCH, TOKENS, bits, log_scatter_ratio
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Collapse under a cosine router against a linear one."""
    cosine: Mapping[str, Any] = {**SWITCH, "router": {"method": "cosine", "k": 1}}
    method, baseline = bench.arch(cosine), bench.arch(SWITCH)
    ratios = ([log_scatter_ratio(bench, bench.train(arch, seed, tokens=TOKENS).model) for seed in bench.seeds]
              for arch in (method, baseline))
    ours, theirs = bits(bench, method), bits(bench, baseline)
    evidence = weigh("Cosine routing lessens representation collapse.",
                     "log of within-expert over between-expert scatter of hidden states, mean over layers",
                     *ratios, lower_is_better=False)
    return provided(evidence, no_worse(ours, theirs, 0.01), "Its bits per byte are more than one per cent higher.",
                    method_bits=ours, baseline_bits=theirs)
