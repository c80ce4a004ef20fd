"""Routing under a mask by token frequency: rare ids see one fixed expert, frequent ids see several or all.

**Equation:** h = W x + m_id, with m_id = 0 at the experts that the token's id may see and -inf elsewhere;
    p = softmax(h);  I = top-k of p among visible experts;  y = sum_{i in I} p_i E_i(x).
    Frequent ids: the fewest most frequent ones that make up `frequent_share` of the tokens.
**Shapes:** x [T, D], W [E, D], token ids [T], visible [V, E], indices and weights [T, K], scores [T, E].
**Reference:** Su et al. 2024, MaskMoE (2407.09816), section 3.
**Differs:** the border between rare and frequent ids is a share of the tokens; the paper's own figure was not at hand
    and 0.6 stands in for it. k above 1 is allowed: an id that sees fewer experts than k leaves slots empty. W starts
    normal with std 0.02.
**Fails when:** nearly all ids are rare: routing is then a random hash, and the router learns from few tokens.
**Cost:** O(T E D); the mask takes V E bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import TokenRouter, project
from mixwell.kernels.norm import wide
from mixwell.mixing import check_k, check_least, empty, normal_parameter, select


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of routing under a frequency mask."""

    vocab_size: int  # V, number of token ids
    k: int = 1  # experts per token at most, 1 to E
    frequent_share: float = 0.6  # share of all tokens that the frequent ids make up, 0 to 1
    rare_visible: int = 1  # experts that a rare id sees, 1 to E
    frequent_visible: int | None = None  # experts that a frequent id sees, 1 to E; default all
    frequencies: tuple[float, ...] = ()  # of each id; empty: learnt by fit_tokens

    def __post_init__(self) -> None:
        check_least(self, vocab_size=1, k=1, rare_visible=1, frequent_visible=1)
        share = self.frequent_share
        given = len(self.frequencies)
        if not 0 <= share <= 1:
            raise ValueError(f"frequent_share is {share}; expected 0 to 1")
        if given and given != self.vocab_size:
            raise ValueError(f"{given} frequencies for {self.vocab_size} token ids; give one for each")


def frequent_ids(frequencies_V: Tensor, share: float) -> Tensor:
    """The fewest most frequent ids whose frequencies sum to `share` of the total, bool [V]."""
    frequencies = frequencies_V.double()
    values, order = frequencies.sort(descending=True, stable=True)
    before = values.cumsum(0) - values
    enough = share * values.sum()
    nothing = torch.zeros_like(order, dtype=torch.bool)
    return nothing.scatter(0, order, before < enough)


def visible_experts(frequencies_V: Tensor, config: Config, num_experts: int, generator: torch.Generator) -> Tensor:
    """The experts that each id may see, bool [V, E], drawn uniformly for each id."""
    shape = (config.vocab_size, num_experts)
    draw = torch.rand(shape, generator=generator, device=generator.device)
    order = draw.argsort(dim=-1)
    rank = order.argsort(dim=-1)
    frequencies_V = frequencies_V.to(draw.device)
    frequent = frequent_ids(frequencies_V, config.frequent_share)
    frequent = frequent.unsqueeze(-1)
    many = config.frequent_visible or num_experts
    return rank < torch.where(frequent, many, config.rare_visible)


def route(logits_TE: Tensor, visible_TE: Tensor, k: int) -> Routing:
    """The routing that the logits [T, E] give where only experts marked in `visible_TE` may be chosen."""
    hidden_TE = ~visible_TE
    masked = logits_TE.masked_fill(hidden_TE, float("-inf"))
    scores = masked.softmax(-1)
    order_by = masked.detach()
    indices, weights = select(scores, k, by_TE=order_by)
    hidden_TK = hidden_TE.gather(-1, indices)
    indices, weights = empty(indices, weights, hidden_TK)
    return Routing(indices, weights, scores, masked)


@method(
    title="Masked by token frequency",
    paper="MaskMoE: Boosting Token-Level Learning via Routing Mask in Mixture-of-Experts",
    year=2024,
    tags={"token-choice", "batch-invariant"},
)
class Masked(TokenRouter):
    """Router that hides experts from a token by its id's frequency; see the module's card."""

    config: Config
    visible_VE: Tensor

    def __init__(self, dim: int, num_experts: int, config: Config, generator: torch.Generator | None = None) -> None:
        check_k(config.k, num_experts)
        rare = config.rare_visible
        frequent = config.frequent_visible
        if max(rare, frequent or 1) > num_experts:
            raise ValueError(f"rare_visible is {rare} and frequent_visible {frequent} of {num_experts} experts; choose "
                             f"1 to {num_experts}")
        super().__init__(dim, num_experts, config, generator)
        self.weight = normal_parameter((num_experts, dim), generator)
        nothing = torch.zeros(config.vocab_size, num_experts, dtype=torch.bool)
        self.register_buffer("visible_VE", nothing)
        if config.frequencies and not nothing.is_meta:  # a shape without values needs none drawn
            self._draw_visible(torch.tensor(config.frequencies), generator)

    @property
    def needs_tokens(self) -> bool:
        """Whether the mask still waits for frequencies."""
        return not bool(self.visible_VE[0].any())

    def fit_tokens(self, tokens_N: Tensor, generator: torch.Generator | None = None) -> None:
        """Draw the mask by the frequencies in a stream of token ids [N]; raises `MixwellError` without a generator."""
        counts = torch.bincount(tokens_N, minlength=self.config.vocab_size)
        self._draw_visible(counts, generator)

    def _draw_visible(self, frequencies_V: Tensor, generator: torch.Generator | None) -> None:
        if generator is None:
            raise MixwellError("Masked draws the experts that each id may see; give a generator.")
        visible = visible_experts(frequencies_V, self.config, self.num_experts, generator)
        self.visible_VE.copy_(visible)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D] among the experts that their ids may see."""
        ids = self.ids(x_TD, context, self.config.vocab_size)
        logits = project(wide(x_TD), self.weight)
        return route(logits, self.visible_VE[ids], self.config.k)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six with ids below ten of which few are frequent, four experts."""
    frequencies = tuple(1 / (i + 1) for i in range(10))
    config = Config(vocab_size=10, frequencies=frequencies)
    token_ids_T = torch.randint(10, (8,), generator=generator)
    x_TD = torch.randn(8, 6, generator=generator)
    context = Context(token_ids_T=token_ids_T)
    return {"dim": 6, "num_experts": 4, "config": config, "x_TD": x_TD, "context": context}
