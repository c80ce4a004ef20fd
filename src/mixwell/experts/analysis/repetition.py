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
from mixwell.experts.analysis._parts import example_routing, number


@dataclass(frozen=True, kw_only=True)
class Config:
    """The repetition has no option."""


def chance_in_common(experts: int, k: int) -> float:
    """1 - C(E - K, K) / C(E, K): the chance that two draws of K experts share one."""
    if k > experts:
        return 1.0
    apart = math.comb(max(experts - k, 0), k)
    return 1 - apart / math.comb(experts, k)


@method(
    title="Repeated consecutive choices",
    paper="Mixtral of Experts",
    year=2024,
)
def repetition(routing: Routing, config: Config, context: Context) -> dict[str, Any]:
    """pairs (neighbours counted), first, first_chance, first_chance_at_load, any, any_chance.

    Raises `ValueError` where the context's rows and places do not make up the tokens.
    """
    tokens, k = routing.indices_TK.shape
    shape = context.batch_shape or (1, tokens)
    if shape[0] * shape[1] != tokens:
        raise ValueError(f"batch_shape is {shape} for {tokens} tokens; expected rows times places")
    indices_BSK = routing.indices_TK.view(*shape, k)
    mask = torch.ones(shape, dtype=torch.bool) if context.mask_T is None else context.mask_T.view(shape)
    both_real = mask[:, :-1] & mask[:, 1:]
    before = indices_BSK[:, :-1][both_real]
    after = indices_BSK[:, 1:][both_real]
    filled = before >= 0
    first = (before[:, 0] == after[:, 0]) & filled[:, 0]
    same_NKK = before.unsqueeze(2) == after.unsqueeze(1)
    common = (same_NKK & filled.unsqueeze(2)).flatten(1).any(1)
    experts = routing.num_experts
    first_choices = indices_BSK[..., 0][mask]
    counts = torch.bincount(first_choices + 1, minlength=experts + 1)[1:]
    shares = counts.double() / max(len(first_choices), 1)
    return {
        "pairs": len(before),
        "first": number(first.double().mean()),
        "first_chance": 1 / experts,
        "first_chance_at_load": number(shares.square().sum()),
        "any": number(common.double().mean()),
        "any_chance": chance_in_common(experts, k),
    }


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two rows of four tokens over four experts, two each."""
    routing = example_routing(generator)
    context = Context(batch_shape=(2, 4))
    return {"routing": routing, "config": Config(), "context": context}
