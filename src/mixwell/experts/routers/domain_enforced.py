"""Domain-enforced routing: a token's domain or modality says which experts it may use.

**Equation:** S_c the experts of domain c;  h = W (x_t + v_c);  p = softmax of h over S_c, 0 outside;  I = top-k of p;
    w_i = p_i / sum_{j in I} p_j.  One expert in S_c: w = 1, whatever the token.  v_c is the domain's learnt token.
**Shapes:** x [T, D]; W [E, D]; v [L, D]; weights [T, K]; a domain with fewer than K experts leaves slots empty.
**Reference:** Hallee et al. 2024 (2401.15713), section on enforced routing; Li et al. 2024, Uni-MoE (2405.11273),
    modality experts and top-2 routing among those plugged in.
**Differs:** from memory of both papers. The learnt token is added to every token's gate input instead of standing in
    front of the sequence. At k = 1 with a choice, the weight is p_i. W starts normal with std 0.02, v with 1. Of
    Uni-MoE's training in stages only the routing is here: its encoders and connectors are not, and its last stage tunes
    low-rank updates where the claim trains all weights.
**Fails when:** a token's domain is not known at inference, or a domain needs what another's expert learnt.
**Cost:** O(T D E); nothing where every domain has one expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import project, span
from mixwell.kernels.norm import wide
from mixwell.mixing import Router, check_choice, empty, normal_parameter, renormalises, select


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the domain-enforced router."""

    k: int = 1  # experts per token, at least 1
    renormalise: bool | None = None  # weights of a token sum to 1; default: wherever k > 1
    domains: tuple[tuple[int, ...], ...] = ()  # experts of each domain; default: domain c has expert c alone
    learnt_token: bool = False  # add a learnt vector of the domain to what the gate reads

    def __post_init__(self) -> None:
        check_choice(self.k, self.renormalise)
        for c, experts in enumerate(self.domains):
            different = len(set(experts)) == len(experts)
            if not experts or not different or min(experts) < 0:
                raise ValueError(f"domain {c} has experts {list(experts)}; expected at least one, all different")
        largest = max(map(len, self.domains), default=1)
        if self.learnt_token and largest == 1:
            raise ValueError("learnt_token needs a domain with a choice of experts; list them under domains")


def route(logits_TE: Tensor, allowed_TE: Tensor, k: int, renormalise: bool | None = None) -> Routing:
    """The routing of logits [T, E] inside the allowed experts (bool [T, E], at least one a token)."""
    outside_TE = ~allowed_TE
    masked = logits_TE.masked_fill(outside_TE, float("-inf"))
    scores = masked.softmax(-1)
    order_by = scores.masked_fill(outside_TE, -1)
    most = int(allowed_TE.sum(-1).max()) if allowed_TE.numel() else 1
    scaled = renormalises(k, renormalise)
    indices, weights = select(scores, min(k, most), by_TE=order_by, renormalise=scaled)
    outside_TK = outside_TE.gather(-1, indices)
    indices, weights = empty(indices, weights, outside_TK)
    return Routing(indices, weights, scores, logits_TE)


@method(
    title="Domain-enforced routing",
    paper=(
        "Contrastive Learning and Mixture of Experts Enables Precise Vector Embeddings",
        "Uni-MoE: Scaling Unified Multimodal LLMs with Mixture of Experts",
    ),
    year=2024,
    tags={"token-choice", "batch-invariant", "exact-k"},
)
class DomainEnforced(Router):
    """Domain-enforced router; domains come from `Context.labels_T`."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        super().__init__(dim, num_experts, config, generator)
        domains = config.domains or tuple((e,) for e in range(num_experts))
        last = max(map(max, domains))
        if last >= num_experts:
            raise ValueError(f"domains name expert {last} of {num_experts} experts")
        largest = max(map(len, domains))
        if config.k > largest:
            raise ValueError(f"k = {config.k} experts per token, and the largest domain has {largest}")
        allowed = torch.zeros(len(domains), num_experts, dtype=torch.bool)
        for c, experts in enumerate(domains):
            allowed[c, list(experts)] = True
        self.register_buffer("allowed_LE", allowed, persistent=False)
        self.allowed_LE: Tensor
        if largest > 1:
            self.weight = normal_parameter((num_experts, dim), generator)
        if config.learnt_token:
            self.token = normal_parameter((len(domains), dim), generator, 1.0)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D] inside their domains; raises `ValueError` where a token's domain is not known."""
        labels = context.labels_T
        count = len(self.allowed_LE)
        if labels is None:
            raise ValueError("domain-enforced routing needs the domain of each token: give Context.labels_T")
        low, high = span(labels)
        if low < 0 or high >= count:
            raise ValueError(f"domains run from {low} to {high}; expected 0 to {count - 1}")
        logits = self._logits(wide(x_TD), labels)
        allowed = self.allowed_LE[labels]
        return route(logits, allowed, self.config.k, self.config.renormalise)



    def _logits(self, x_TD: Tensor, labels_T: Tensor) -> Tensor:
        if not hasattr(self, "weight"):  # every domain has one expert, and nothing is left to choose
            return x_TD.new_zeros(len(x_TD), self.num_experts)
        if self.config.learnt_token:
            x_TD = x_TD + self.token.to(x_TD.dtype)[labels_T]
        return project(x_TD, self.weight)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six from two domains, with two and three of four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    labels_T = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1])
    context = Context(labels_T=labels_T)
    config = Config(domains=((0, 1), (1, 2, 3)))
    return {"dim": 6, "num_experts": 4, "config": config, "x_TD": x_TD, "context": context}
