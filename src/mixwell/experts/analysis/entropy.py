"""Entropy of the gates: how sure the router is of a token, and how much its choice says about the token.

**Equation:** H_token = mean_t H(p_t);  H_mean = H(mean_t p_t);  I = H_mean - H_token;  relative: divided by log E.
**Shapes:** scores [T, E] -> numbers, in nats, and a histogram of H(p_t) / log E.
**Reference:** Nguyen et al. 2024, LibMoE (2411.00918), router analyses (entropy of expert selection).
**Differs:** scores that do not sum to 1 are scaled to do so. Not here: the analyses that compare checkpoints of one
    training (where it should have stopped, how far choices drift), since an analysis sees one model.
**Fails when:** scores are no probabilities and scaling them means nothing.
**Cost:** O(T E).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis._parts import entropy_nats, example_routing, gates_TE, number


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the entropy analysis."""

    bins: int = 10  # bins of the histogram over 0 to 1, at least 1

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"bins is {self.bins}; expected at least 1")


@method(
    title="Gate entropy",
    paper="LIBMoE: A Library for comprehensive benchmarking Mixture of Experts in Large Language Models",
    year=2024,
)
def entropy(routing: Routing, config: Config, context: Context) -> dict[str, Any]:
    """token_nats, mean_gate_nats, information_nats, token_relative, mean_gate_relative, histogram (token shares)."""
    gates = gates_TE(routing, context)
    tokens = len(gates)
    bins = config.bins
    if not tokens:
        names = ("token_nats", "mean_gate_nats", "information_nats", "token_relative", "mean_gate_relative")
        return {**dict.fromkeys(names), "histogram": [0.0] * bins}
    per_token = entropy_nats(gates)
    token = per_token.mean()
    mean_gate = entropy_nats(gates.mean(0))
    full = math.log(routing.num_experts) or 1.0  # a single expert has no entropy to relate to
    bin_T = (per_token / full * bins).long().clamp(0, bins - 1)
    histogram = torch.bincount(bin_T, minlength=bins).double() / tokens
    return {
        "token_nats": number(token),
        "mean_gate_nats": number(mean_gate),
        "information_nats": number(mean_gate - token),
        "token_relative": number(token / full),
        "mean_gate_relative": number(mean_gate / full),
        "histogram": histogram.tolist(),
    }


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts, two each."""
    return {"routing": example_routing(generator), "config": Config(), "context": Context()}
