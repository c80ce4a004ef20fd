"""Specialisation: how differently domains, or single tokens of the vocabulary, use the experts.

**Equation:** s_gi = share of group g's slots that went to expert i;  I = sum_gi p(g, i) log p(g, i) / (p(g) p(i)),
    the mutual information of group and expert;  a group's top share = max_i s_gi, 1 / N by chance.
**Shapes:** indices [T, K], labels or token ids [T] -> lists of G x E and numbers, information in nats.
**Reference:** Jiang et al. 2024 (2401.04088), section 5 (share of tokens by domain); Muennighoff et al. 2024, OLMoE
    (2409.02060), section 5 (domain and vocabulary specialisation).
**Differs:** information is reported beside the shares; it is biased upward by about (G - 1)(E - 1) / 2N for N slots.
**Fails when:** groups are small: rare tokens look specialised by chance; raise `least`.
**Cost:** O(T K).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis._parts import entropy_nats, example_routing, number, real


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the specialisation."""

    by: Literal["domain", "token"] = "domain"  # group by Context.labels_T or by Context.token_ids_T
    least: int = 1  # groups with fewer real tokens are left out, at least 1

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ValueError(f"least is {self.least}; expected at least 1")


def slots_by_group(indices_TK: Tensor, group_T: Tensor, groups: int, experts: int) -> Tensor:
    """How many slots of each group went to each expert, float64 [G, E]."""
    width = experts + 1  # the first column takes the empty slots, index -1
    cells = group_T.unsqueeze(1) * width + indices_TK + 1
    counts = torch.bincount(cells.flatten(), minlength=groups * width)
    return counts.view(-1, width)[:, 1:].double()


def information_nats(counts_GE: Tensor) -> Tensor:
    """Mutual information of group and expert, H(g) + H(e) - H(g, e)."""
    total = counts_GE.sum().clamp_min(1)
    joint = counts_GE / total
    of_expert = entropy_nats(joint.sum(0))
    of_group = entropy_nats(joint.sum(1))
    of_both = entropy_nats(joint.flatten())
    return of_expert + of_group - of_both


@method(
    title="Specialisation by domain or token",
    paper="Mixtral of Experts",
    year=2024,
)
def specialisation(routing: Routing, config: Config, context: Context) -> dict[str, Any]:
    """groups (ids), tokens of each, shares (G x E), top_expert and top_share of each, information_nats, mean_top_share.

    mean_top_share weighs groups by their tokens. Raises `ValueError` where the context lacks what groups the tokens.
    """
    name = "labels_T" if config.by == "domain" else "token_ids_T"
    keys = getattr(context, name)
    if keys is None:
        raise ValueError(f"specialisation by {config.by} needs Context.{name}")
    indices = real(routing.indices_TK, context)
    keys = real(keys, context)
    groups, place, tokens = keys.unique(return_inverse=True, return_counts=True)
    counts = slots_by_group(indices, place, len(groups), routing.num_experts)
    frequent = tokens >= config.least
    counts = counts[frequent]
    groups = groups[frequent]
    tokens = tokens[frequent]
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    top = shares.max(1)
    weighed = (top.values * tokens).sum() / tokens.sum()
    return {
        "groups": groups.tolist(),
        "tokens": tokens.tolist(),
        "shares": shares.tolist(),
        "top_expert": top.indices.tolist(),
        "top_share": top.values.tolist(),
        "information_nats": number(information_nats(counts)),
        "mean_top_share": number(weighed) if len(groups) else None,
    }


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of two domains over four experts, two each."""
    routing = example_routing(generator)
    labels_T = torch.tensor([0, 0, 1, 1, 0, 1, 0, 1])
    return {"routing": routing, "config": Config(), "context": Context(labels_T=labels_T)}
