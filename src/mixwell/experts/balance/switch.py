"""The Switch balance loss: one where experts share the tokens evenly, above where popular experts are preferred.

**Equation:** loss = N sum_i f_i P_i, with f_i the fraction of slots dispatched to expert i and P_i its mean
    probability. Gradient flows through P only.
**Shapes:** scores [T, E], indices [T, K] -> scalar.
**Reference:** Fedus et al. 2021 (2101.03961), eq. 4-6.
**Differs:** f counts slots over K choices and sums to 1 for every K, so that the loss is 1 at balance for every K;
    scores that do not sum to 1 (sigmoid) are first scaled to do so.
**Fails when:** taken over few tokens, where it forces balance inside each sequence and hinders specialisation.
**Cost:** O(T E).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.balance._parts import example_routing, load_fractions, mean_scores


@dataclass(frozen=True, kw_only=True)
class Config:
    """The Switch loss has no option beside its coefficient, which the layer holds."""


@method(
    title="Switch balance loss",
    paper="Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity",
    year=2021,
    tags={"one-at-balance"},
)
def switch(routing: Routing, config: Config, context: Context) -> Tensor:
    """N sum_i f_i P_i as a scalar; 1 at perfect balance, up to N at collapse."""
    load = load_fractions(routing, context)
    scores = mean_scores(routing, context)
    return routing.num_experts * (load * scores).sum()


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts, two each."""
    return {"routing": example_routing(generator), "config": Config(), "context": Context()}
