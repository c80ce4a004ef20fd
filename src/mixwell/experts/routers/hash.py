"""Hash routing: a fixed table from token id to expert; nothing to learn and nothing to balance.

**Equation:** y_t = E_{h(id_t)}(x_t), with h one of
    random: a uniform expert for each id, drawn once;
    balanced: ids by falling frequency, each to the expert with the least frequency so far;
    modulo: h(id) = id mod E.
**Shapes:** token ids [T], indices and weights [T, 1], scores [T, E] (one-hot), table [V].
**Reference:** Roller et al. 2021, Hash Layers (2106.04426), section 3.2.
**Differs:** one hash a layer (the paper's MultiHash splits an expert's weights); modulo is here for tables without
    training data. The table is a buffer, saved with the model.
**Fails when:** frequent ids are many times the mean load: no table over single ids can even them out.
**Cost:** O(T) to route; O(V log V) once for the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import TokenRouter, balanced_buckets, one_hot_routing
from mixwell.kernels.norm import wide
from mixwell.mixing import check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of hash routing."""

    vocab_size: int  # V, number of token ids
    table: Literal["random", "balanced", "modulo"] = "balanced"  # how ids are spread over experts
    frequencies: tuple[float, ...] = ()  # of each id, for `balanced`; empty: learnt by fit_tokens

    def __post_init__(self) -> None:
        check_least(self, vocab_size=1)
        given = len(self.frequencies)
        if given and self.table != "balanced":
            raise ValueError(f"frequencies were given with table: {self.table}, which does not read them; set table: "
                             "balanced or leave them out")
        if given and given != self.vocab_size:
            raise ValueError(f"{given} frequencies for {self.vocab_size} token ids; give one for each")


def make_table(config: Config, num_experts: int, generator: torch.Generator | None = None) -> Tensor:
    """The expert of each token id, int64 [V]; -1 where frequencies are still to be learnt."""
    if config.table == "random":
        device = generator.device if generator is not None else None
        return torch.randint(num_experts, (config.vocab_size,), generator=generator, device=device)
    if config.table == "modulo":
        return torch.arange(config.vocab_size) % num_experts
    if config.frequencies:
        return torch.tensor(balanced_buckets(config.frequencies, num_experts))
    return torch.full((config.vocab_size,), -1)


@method(
    title="Hash",
    paper=("Hash Layers For Large Sparse Models", "A Review of Sparse Expert Models in Deep Learning"),
    year=2021,
    tags={"static", "token-choice", "batch-invariant", "simplex"},
)
class Hash(TokenRouter):
    """Fixed table from token id to expert; see the module's card."""

    has_logits = False

    config: Config
    table_V: Tensor

    def __init__(self, dim: int, num_experts: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__(dim, num_experts, config, generator)
        self.register_buffer("table_V", make_table(config, num_experts, generator))

    @property
    def experts_per_token(self) -> float:
        """One."""
        return 1.0

    @property
    def needs_tokens(self) -> bool:
        """Whether the balanced table still waits for frequencies."""
        return int(self.table_V[0]) < 0

    def fit_tokens(self, tokens_N: Tensor, generator: torch.Generator | None = None) -> None:
        """Build the balanced table from a stream of token ids [N]; the other tables need none."""
        if self.config.table == "balanced":
            counts = torch.bincount(tokens_N, minlength=self.config.vocab_size).tolist()
            self.table_V.copy_(torch.tensor(balanced_buckets(counts, self.num_experts)))

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D] by their ids alone."""
        ids = self.ids(x_TD, context, self.config.vocab_size)
        indices = self.table_V[ids].unsqueeze(-1)
        return one_hot_routing(indices, self.num_experts, wide(x_TD))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six with ids below ten, four experts."""
    frequencies = tuple(1 / (i + 1) for i in range(10))
    config = Config(vocab_size=10, frequencies=frequencies)
    token_ids_T = torch.randint(10, (8,), generator=generator)
    x_TD = torch.randn(8, 6, generator=generator)
    context = Context(token_ids_T=token_ids_T)
    return {"dim": 6, "num_experts": 4, "config": config, "x_TD": x_TD, "context": context}
