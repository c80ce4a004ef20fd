"""Stratified mixture of experts: experts in ordered strata, and tokens that pass through as many as they need.

**Equation:** a token starts at gate 1. Gate s chooses among the experts of stratum s and all later ones:
    x <- x + sum_{i in I_s(n)} w_i E_i(n), with n = x at gate 1 and RMSNorm_s(x) at the later ones; it goes on to gate
    j + 1, j the stratum of its best expert, and is done after the last. Loss: mean of the gates' balance losses.
**Shapes:** x [T, D]; gate_up_proj [E, 2 F, D]; down_proj [E, D, F], the strata's experts one after another.
**Reference:** Xu et al. 2023, SMoE (2305.02176), section 3, and the authors' code.
**Differs:** SwiGLU experts without capacity limits; RMS norm in place of layer norm. The block gets a normed token and
    adds up from there; the authors add up from the token before its norm. The balance loss is averaged over the gates
    that saw a token. Any router may be a gate. Experts start normal with std 0.02.
**Fails when:** the last stratum wins early: every token then leaves after one expert, and the others learn nothing.
**Cost:** 6 K D F FLOPs for each gate a token passes, at most as many as strata; 2 D times the experts it chooses from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.layers._parts import ChannelMixer, routed_swiglu
from mixwell.kernels.norm import RMSNorm
from mixwell.mixing import Mixed, apply_balance, build_balance, build_router, check_above, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the stratified mixture."""

    strata: tuple[int, ...]  # experts of each stratum, first to last
    hidden_dim: int  # F, of each expert
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 1})  # every gate's
    balance: Mapping[str, Any] = field(default_factory=lambda: {"switch": 0.01, "z_loss": 0.001})  # of every gate
    norm_eps: float = 1e-5  # of the norms between gates, above 0

    def __post_init__(self) -> None:
        check_least(self, hidden_dim=1)
        if not self.strata or min(self.strata) < 1:
            raise ValueError(f"strata is {list(self.strata)}; expected at least one stratum of at least one expert")
        check_above(self, norm_eps=0)

    @property
    def num_experts(self) -> int:
        """E."""
        return sum(self.strata)


def rows_of(context: Context, rows_N: Tensor) -> Context:
    """What is known of some of the tokens."""
    names = [f.name for f in fields(context) if f.name.endswith("_T")]
    known = {name: getattr(context, name) for name in names}
    picked = {name: value[rows_N] for name, value in known.items() if value is not None}
    state = context.state
    if state is not None:
        state = state[rows_N]
    return replace(context, batch_shape=None, state=state, **picked)


def among_all(routing: Routing, before: int) -> Routing:
    """A gate's routing with its experts numbered among all; the `before` ones of earlier strata score 0."""
    filled = routing.indices_TK >= 0
    indices = routing.indices_TK
    indices = torch.where(filled, indices + before, indices)
    scores = nn.functional.pad(routing.scores_TE, (before, 0))
    logits = routing.logits_TE
    if logits is not None:
        logits = nn.functional.pad(logits, (before, 0), value=float("-inf"))
    return replace(routing, indices_TK=indices, scores_TE=scores, logits_TE=logits)


@method(
    title="Stratified mixture of experts",
    paper="Towards Being Parameter-Efficient: A Stratified Sparsely Activated Transformer with Dynamic Capacity",
    year=2023,
    tags={"router", "tokenwise"},
)
class StratifiedMoE(ChannelMixer):
    """Mixture of SwiGLU experts in ordered strata; see the module's card."""

    config: Config
    gates: Any
    norms: Any
    stratum_E: Tensor
    packable = ("gate_up_proj", "down_proj")

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        strata = config.strata
        experts = config.num_experts
        hidden = config.hidden_dim
        self.before = [sum(strata[:s]) for s in range(len(strata))]
        gates = [build_router(config.router, dim, experts - b, generator) for b in self.before]
        self.gates = nn.ModuleList(gates)
        self.norms = nn.ModuleList(RMSNorm(dim, config.norm_eps) for _ in strata[1:])
        self.balance = build_balance(config.balance)
        self.gate_up_proj = normal_parameter((experts, 2 * hidden, dim), generator)
        self.down_proj = normal_parameter((experts, dim, hidden), generator)
        stratum = torch.arange(len(strata)).repeat_interleave(torch.tensor(strata))
        self.register_buffer("stratum_E", stratum, persistent=False)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]. The routing lists all the experts that a token passed; its scores are the first gate's."""
        total = torch.zeros_like(x_TD)
        gate_T = torch.zeros(len(x_TD), dtype=torch.int64, device=x_TD.device)  # the gate each token stands at
        passed = []
        found = []
        for s, gate in enumerate(self.gates):
            rows = (gate_T == s).nonzero().squeeze(1)
            if s and not rows.numel():
                continue
            x = x_TD
            inner = context
            if s:
                x = self.norms[s - 1]((x_TD + total)[rows])
                inner = rows_of(context, rows)
            own = gate(x, inner)
            routing = among_all(own, self.before[s])
            added = routed_swiglu(self, x, routing).to(total.dtype)
            total = total.index_add(0, rows, added)
            gate_T = gate_T.index_copy(0, rows, self._next(routing, s))
            passed.append((rows, routing))
            found.append(apply_balance(self.balance, own, inner))
        return Mixed(total, self._joined(passed, len(x_TD)), *_mean_losses(found))

    def _next(self, routing: Routing, gate: int) -> Tensor:
        """The gate after the stratum of each token's best expert; the next one for a token that got none."""
        weights = routing.weights_TK.detach().masked_fill(routing.indices_TK < 0, float("-inf"))
        best = weights.argmax(-1, keepdim=True)
        expert = routing.indices_TK.gather(-1, best).squeeze(-1)
        stratum = self.stratum_E[expert.clamp_min(0)]
        return torch.where(expert < 0, gate, stratum) + 1

    def _joined(self, passed: list[tuple[Tensor, Routing]], tokens: int) -> Routing:
        """One routing of all tokens, the gates' slots side by side."""
        first = passed[0][1]
        indices = [first.indices_TK]
        weights = [first.weights_TK]
        for rows, routing in passed[1:]:
            shape = (tokens, routing.indices_TK.shape[1])
            nowhere = routing.indices_TK.new_full(shape, -1)
            nothing = routing.weights_TK.new_zeros(shape)
            indices.append(nowhere.index_copy(0, rows, routing.indices_TK))
            weights.append(nothing.index_copy(0, rows, routing.weights_TK))
        return replace(first, indices_TK=torch.cat(indices, 1), weights_TK=torch.cat(weights, 1))

    def flops_per_token(self) -> float:
        """6 K D F and 2 D E_s for every gate s, E_s the experts it chooses from: what a token costs that passes all of
        them, the most it can; for one batch see `flops_of`."""
        total = 0.0
        for gate in self.gates:
            hidden = self.config.hidden_dim * gate.experts_per_token
            total += self.dim * (6.0 * hidden + 2.0 * gate.num_experts)
        return total

    def flops_of(self, mixed: Mixed) -> float:
        """Forward FLOPs per token of the experts that this output took: 6 D F for each filled slot; gates left out.

        Raises `ValueError` for an output without tokens.
        """
        if mixed.routing is None or not len(mixed.routing.indices_TK):
            raise ValueError("flops_of counts the slots of an output with tokens; got none")
        filled = mixed.routing.indices_TK >= 0
        slots = float(filled.sum()) / len(filled)
        return 6.0 * self.dim * self.config.hidden_dim * slots


def _mean_losses(found: list[tuple[dict[str, Tensor], Tensor | None]]) -> tuple[dict[str, Tensor], Tensor | None]:
    """Means over the gates that saw a token."""
    losses = {}
    for name in found[0][0]:
        of_gates = [by_name[name] for by_name, _ in found]
        losses[name] = torch.stack(of_gates).mean()
    terms = [aux for _, aux in found if aux is not None]
    aux = torch.stack(terms).mean() if terms else None
    return losses, aux


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, strata of one, two and two experts."""
    config = Config(strata=(1, 2, 2), hidden_dim=5)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
