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

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.analysis._parts import entropy_nats, number, real


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the specialisation."""

    by: Literal["domain", "token"] = "domain"  # group by Context.labels_T or by Context.token_ids_T
    least: int = 1  # groups with fewer real tokens are left out, at least 1

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ValueError(f"least is {self.least}; expected at least 1")


@method(
    title="Specialisation by domain or token",
    paper="Mixtral of Experts",
    year=2024,
)
def specialisation(routing: Routing, config: Config, context: Context) -> dict[str, Any]:
    """groups (ids), tokens of each, shares (G x E), top_expert and top_share of each, information_nats, mean_top_share.

    mean_top_share weighs groups by their tokens.
    """
    keys = context.labels_T if config.by == "domain" else context.token_ids_T
    if keys is None:
        raise ValueError(f"specialisation by {config.by} needs Context."
                         f"{'labels_T' if config.by == 'domain' else 'token_ids_T'}")
    indices, keys = real(routing.indices_TK, context), real(keys, context)
    groups, place, tokens = keys.unique(return_inverse=True, return_counts=True)
    experts = routing.num_experts
    cells = (place.unsqueeze(1) * (experts + 1) + indices + 1).flatten()
    counts = torch.bincount(cells, minlength=len(groups) * (experts + 1)).view(-1, experts + 1)[:, 1:].double()
    frequent = tokens >= config.least
    counts, groups, tokens = counts[frequent], groups[frequent], tokens[frequent]
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    joint = counts / counts.sum().clamp_min(1)
    information = entropy_nats(joint.sum(0)) + entropy_nats(joint.sum(1)) - entropy_nats(joint.flatten())
    top = shares.max(1)
    return {
        "groups": groups.tolist(),
        "tokens": tokens.tolist(),
        "shares": shares.tolist(),
        "top_expert": top.indices.tolist(),
        "top_share": top.values.tolist(),
        "information_nats": number(information),
        "mean_top_share": number((top.values * tokens).sum() / tokens.sum()) if len(groups) else None,
    }


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of two domains over four experts, two each."""
    scores = torch.randn(8, 4, generator=generator).softmax(-1)
    weights, indices = scores.topk(2, dim=-1)
    return {"routing": Routing(indices, weights, scores), "config": Config(),
            "context": Context(labels_T=torch.tensor([0, 0, 1, 1, 0, 1, 0, 1]))}
