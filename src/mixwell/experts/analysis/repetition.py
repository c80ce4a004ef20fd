"""Repetition: how often consecutive tokens are sent to the same expert.

**Equation:** first = share of neighbours (t, t + 1) in a row with the same first choice, 1 / E by chance (sum_i f_i^2
    at the observed load);  any = share with a first or second choice in common, 1 - C(E - K, K) / C(E, K) by chance.
**Shapes:** indices [T, K] in rows of [B, S] -> numbers.
**Reference:** Jiang et al. 2024 (2401.04088), section 5, table 5 (first choice: 14 to 28 % against 12.5 % by chance;
    first or second: 62 to 67 % against 46 %).
**Differs:** all K choices stand for the first two. Chance at the observed load is given beside the paper's.
**Fails when:** the same token follows itself in the text: it repeats its experts for that reason alone.
**Cost:** O(T K^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis._parts import number


@dataclass(frozen=True, kw_only=True)
class Config:
    """The repetition has no option."""


@method(
    title="Repeated consecutive choices",
    paper="Mixtral of Experts",
    year=2024,
)
def repetition(routing: Routing, config: Config, context: Context) -> dict[str, Any]:
    """pairs (neighbours counted), first, first_chance, first_chance_at_load, any, any_chance."""
    tokens, k = routing.indices_TK.shape
    rows, width = context.batch_shape or (1, tokens)
    if rows * width != tokens:
        raise ValueError(f"batch_shape is {(rows, width)} for {tokens} tokens; expected rows times places")
    indices = routing.indices_TK.view(rows, width, k)
    mask = torch.ones(rows, width, dtype=torch.bool) if context.mask_T is None else context.mask_T.view(rows, width)
    both = mask[:, :-1] & mask[:, 1:]
    before, after = indices[:, :-1][both], indices[:, 1:][both]
    first = (before[:, 0] == after[:, 0]) & (before[:, 0] >= 0)
    common = ((before.unsqueeze(2) == after.unsqueeze(1)) & (before >= 0).unsqueeze(2)).flatten(1).any(1)
    firsts = indices[..., 0][mask]
    shares = torch.bincount(firsts + 1, minlength=routing.num_experts + 1)[1:].double() / max(len(firsts), 1)
    experts = routing.num_experts
    return {
        "pairs": len(before),
        "first": number(first.double().mean()),
        "first_chance": 1 / experts,
        "first_chance_at_load": number(shares.square().sum()),
        "any": number(common.double().mean()),
        "any_chance": 1 - math.comb(max(experts - k, 0), k) / math.comb(experts, k) if k <= experts else 1.0,
    }


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two rows of four tokens over four experts, two each."""
    scores = torch.randn(8, 4, generator=generator).softmax(-1)
    weights, indices = scores.topk(2, dim=-1)
    return {"routing": Routing(indices, weights, scores), "config": Config(), "context": Context(batch_shape=(2, 4))}
