"""Load: how many slots each expert received, and how evenly.

**Equation:** n_i = slots of expert i;  share f_i = n_i / sum n;  max over mean = N max f;  CV = std(n) / mean(n);
    effective experts = exp(H(f)).
**Shapes:** indices [T, K] -> numbers and lists of E.
**Reference:** Shazeer et al. 2017 (1701.06538), table 6 (CV and max over mean load).
**Differs:** none.
**Fails when:** taken over few tokens: evenness then says more of the sample than of the router.
**Cost:** O(T K).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis._parts import entropy_nats, example_routing, number


@dataclass(frozen=True, kw_only=True)
class Config:
    """The load has no option."""


@method(
    title="Expert load",
    paper="Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
    year=2017,
)
def load(routing: Routing, config: Config, context: Context) -> dict[str, Any]:
    """counts, shares (lists of E), max_over_mean, cv, effective_experts, experts_per_token, empty_slots (a share)."""
    counts = routing.load_E(context.mask_T).double()
    tokens, k = routing.indices_TK.shape
    if context.mask_T is not None:
        tokens = int(context.mask_T.sum())
    total = counts.sum()
    mean = counts.mean()
    shares = counts / total.clamp_min(1)
    slots = tokens * k
    return {
        "counts": counts.long().tolist(),
        "shares": shares.tolist(),
        "max_over_mean": number(counts.max() / mean),
        "cv": number(counts.std(correction=0) / mean),
        "effective_experts": number(entropy_nats(shares).exp()) if total else None,
        "experts_per_token": number(total / tokens) if tokens else None,
        "empty_slots": number(1 - total / slots) if slots else None,
    }


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts, two each."""
    return {"routing": example_routing(generator), "config": Config(), "context": Context()}
