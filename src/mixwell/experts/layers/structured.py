"""Feed-forward blocks, one or a mixture of them, whose maps are structured matrices.

**Equation:** y = sum_{i in I(x)} w_i(x) E_i(x);  E(x) = O (act(G x) * (U x)), without a gate O act(U x); G, U and O are
    matrices of `structure`: factors of low rank, block tensor trains, sums of Kronecker products and their kind.
    With num_experts 1 there is no router, and y = E(x).
**Shapes:** x [T, D]; G, U [F, D] and O [D, F], each in its structure's tensors.
**Reference:** Wei et al. 2024 (2407.09835), whose low-rank feed-forwards these are with the structure low_rank.
**Differs:** SwiGLU by default, where the paper has GELU without a gate; that the first layer stays dense is for a
    recipe to say (a mixer for each layer). All start as matrices of std 0.02, as the other layers' do.
**Fails when:** the rank is so small that the block's two products take longer to start than to compute.
**Cost:** what the structure's products take, of K experts and each of their maps; 2 T D E for the router.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing, combine, dispatch, plan
from mixwell.experts.layers._parts import ACTIVATIONS, ChannelMixer
from mixwell.mixing import (
    Mixed,
    Structured,
    apply_balance,
    build_balance,
    build_router,
    build_structured,
    check_above,
    check_least,
    default_balance,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of structured blocks."""

    hidden_dim: int  # F, of each expert
    structure: Mapping[str, Any]  # method of precision.structured and its options
    num_experts: int = 1  # E; 1: a dense block without a router
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})  # of a mixture
    # rule -> coefficient; default: switch 0.01 and z_loss 0.001, nothing for routers without logits
    balance: Mapping[str, Any] | None = None
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"  # gelu_tanh: GELU by its approximation
    gated: bool = True  # False: no G
    std: float | None = 0.02  # of the entries of the maps at their start; none: the structure's own law

    def __post_init__(self) -> None:
        check_least(self, hidden_dim=1, num_experts=1)
        check_above(self, std=0)


class Block(nn.Module):
    """One feed-forward block; a map's last factor is `out.weight`, as it is in other layers."""

    def __init__(self, maps: Sequence[Structured], config: Config) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        *gate, self.up, self.out = maps
        self.gate = gate[0] if gate else None

    def forward(self, x_TD: Tensor, context: Context) -> Tensor:
        """[T, D] -> [T, D]."""
        up = self.up(x_TD, context)
        if self.gate is None:
            return self.out(self.activation(up), context)
        gate = self.gate(x_TD, context)
        return self.out(self.activation(gate) * up, context)


@method(
    title="Feed-forwards of structured matrices",
    paper="Investigating Low-Rank Training in Transformer Language Models: Efficiency and Scaling Analysis",
    year=2024,
    tags={"router", "tokenwise"},
)
class StructuredBlocks(ChannelMixer):
    """Blocks of structured matrices; see the module's card."""

    config: Config
    router: Any

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        self.router = None
        if config.num_experts > 1:
            self.router = build_router(config.router, dim, config.num_experts, generator)
            rules = default_balance(self.router) if config.balance is None else config.balance
            self.balance = build_balance(rules)
        hidden = config.hidden_dim
        into = [(hidden, dim)] * (2 if config.gated else 1)
        shapes = [*into, (dim, hidden)]
        each = len(shapes)
        maps = build_structured(config.structure, shapes * config.num_experts, generator, config.std)
        blocks = [Block(maps[start : start + each], config) for start in range(0, len(maps), each)]
        self.experts = nn.ModuleList(blocks)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D], with the routing, if there is one, and what training adds to the loss."""
        if self.router is None:
            y = self.experts[0](x_TD, context)
            return self._with_penalty(Mixed(y), context)
        routing = self.router(x_TD, context)
        order = plan(routing.indices_TK, self.config.num_experts)
        rows_ND = dispatch(x_TD, order)
        rows_ND = self._routed(rows_ND, order.counts_E, context)
        y = combine(rows_ND, order, routing.weights_TK)
        losses, aux = apply_balance(self.balance, routing, context) if context.losses else ({}, None)
        return self._with_penalty(Mixed(y, routing, losses, aux), context)

    def _routed(self, rows_ND: Tensor, counts_E: Tensor, context: Context) -> Tensor:
        """Rows sorted by expert through their experts; one without rows computes nothing."""
        parts = rows_ND.split(counts_E.tolist())
        done = []
        for expert, part in zip(self.experts, parts):
            y = expert(part, context) if len(part) else part
            done.append(y)
        return torch.cat(done)

    def _with_penalty(self, mixed: Mixed, context: Context) -> Mixed:
        """The result with what its matrices add to the loss."""
        if not (context.losses and self.training):
            return mixed
        terms = [matrix.penalty() for matrix in self.matrices()]
        there = [term for term in terms if term is not None]
        if not there:
            return mixed
        penalty = torch.stack(there).sum()
        aux = penalty if mixed.aux is None else mixed.aux + penalty
        return mixed._replace(losses={**mixed.losses, "structure": penalty}, aux=aux)

    def matrices(self) -> list[Structured]:
        """The structured maps, expert by expert: gate, up, out."""
        return [module for module in self.modules() if isinstance(module, Structured)]

    def after_step(self, routings: Sequence[Routing]) -> None:
        """Let the router follow its load, and matrices whose structure moves follow the step."""
        super().after_step(routings)
        for matrix in self.matrices():
            matrix.after_step()

    def flops_per_token(self) -> float:
        """Those of the experts that a token takes, and 2 D E for the router."""
        flops = sum(matrix.flops_per_token() for matrix in self.matrices())
        if self.router is None:
            return flops
        experts = self.config.num_experts
        share = self.router.experts_per_token / experts
        routing = 2.0 * self.dim * experts
        return share * flops + routing


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, three experts of rank two."""
    config = Config(num_experts=3, hidden_dim=5, structure={"method": "low_rank", "rank": 2})
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
