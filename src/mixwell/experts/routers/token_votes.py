"""Routing by the votes of the last tokens: the expert is known from the text alone, before any layer has run.

**Equation:** h_t = sum_{j=0}^{n-1} gamma^j B[id_{t-j}];  the expert of largest h_t takes the token with weight 1. With
    B[v] = log P(v | domain) this is a naive Bayes guess of the domain that the last n tokens come from.
**Shapes:** token ids [T]; B [V, E], fixed; indices and weights [T, 1]; scores [T, E].
**Reference:** Cai et al. 2024, Read-ME (2410.19123), section 3.2: one router outside the network for all its layers.
**Differs:** Read-ME's router is a small causal transformer on token ids, trained in turn with the network; this one is
    a table that `convert.domain_carve` counts, or at the start random numbers.
**Fails when:** the domains share their words, or text changes its domain within n tokens.
**Cost:** O(T E n), no product with the width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.rng import normal
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import TokenRouter
from mixwell.kernels.norm import wide
from mixwell.mixing import check_above, check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of routing by token votes."""

    vocab_size: int  # V, number of token ids
    reach: int = 16  # n: tokens that vote, at least 1
    decay: float = 0.9  # gamma: what a token's vote counts for the next one, above 0, up to 1

    def __post_init__(self) -> None:
        check_least(self, vocab_size=1, reach=1)
        check_above(self, decay=0)
        if self.decay > 1:
            raise ValueError(f"decay is {self.decay}; expected at most 1")


def summed_votes(votes_BSE: Tensor, reach: int, decay: float) -> Tensor:
    """sum_j decay^j votes[:, s - j] over the last `reach` positions of each row [B, S, E]."""
    total = votes_BSE.clone()
    for j in range(1, min(reach, votes_BSE.shape[1])):
        total[:, j:] += decay**j * votes_BSE[:, :-j]
    return total


@method(
    title="Votes of the last tokens",
    paper="Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design",
    year=2024,
    tags={"static", "simplex"},
)
class TokenVotes(TokenRouter):
    """Router by a table of votes; see the module's card."""

    config: Config
    votes_VE: Tensor
    has_logits = False

    def __init__(self, dim: int, num_experts: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__(dim, num_experts, config, generator)
        self.register_buffer("votes_VE", normal((config.vocab_size, num_experts), 1.0, generator))

    @property
    def experts_per_token(self) -> float:
        """One."""
        return 1.0

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D] by their ids and, where rows are known, by those before them."""
        ids_T = self.ids(x_TD, context, self.config.vocab_size)
        if context.mask_T is not None:
            ids_T = ids_T.masked_fill(~context.mask_T, -1)
        shape = context.batch_shape or (len(ids_T), 1)
        rows_BS = ids_T.view(shape)
        earlier = context.earlier_ids_BS
        if earlier is not None:
            rows_BS = torch.cat([earlier[:, -self.config.reach :], rows_BS], 1)
        votes_BSE = self.votes_VE[rows_BS.clamp_min(0)].masked_fill((rows_BS < 0).unsqueeze(2), 0.0)
        total_BSE = summed_votes(votes_BSE, self.config.reach, self.config.decay)
        own_BSE = total_BSE[:, -shape[1] :]
        scores_TE = own_BSE.reshape(len(ids_T), -1).softmax(-1).to(wide(x_TD).dtype)
        indices_T1 = scores_TE.argmax(-1, keepdim=True)
        weights_T1 = torch.ones_like(scores_TE[:, :1])
        return Routing(indices_T1, weights_T1, scores_TE)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six with ids below ten, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    token_ids_T = torch.randint(10, (8,), generator=generator)
    context = Context(token_ids_T=token_ids_T)
    return {"dim": 6, "num_experts": 4, "config": Config(vocab_size=10), "x_TD": x_TD, "context": context}
