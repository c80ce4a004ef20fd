"""Deep mixture of experts: two soft mixtures, one on top of the other, each with its own gate.

**Equation:** z1 = sum_i g1_i(x) f1_i(x);  z2 = sum_j g2_j(z1) f2_j(z1);  y = W_out z2;
    f(v) = relu(W v);  g(v) = softmax(U relu(V v)).
    Early in training, with G_i the running total of g_i over all tokens so far: g_i = 0 where
    G_i - mean_j G_j > margin, and the rest is scaled to sum to 1.
**Shapes:** x [T, D]; first_proj [E1, F, D]; second_proj [E2, F, F]; down_proj [D, F]; totals [E1 + E2].
**Reference:** Eigen, Ranzato and Sutskever 2013 (1312.4314), sections 3 and 3.1.
**Differs:** from memory of the paper. No biases. The totals move once a step, by `update`, not after every example, and
    the margin counts tokens. The output is the next block's input here, not class probabilities. All start normal with
    std 0.02.
**Fails when:** trained without the constraint: the gate that starts a little ahead gets all the examples.
**Cost:** 2 T (E1 D F + E2 F^2 + F D) FLOPs forward: every expert sees every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.layers._parts import ChannelMixer, Gate
from mixwell.kernels.linear import linear
from mixwell.mixing import Mixed, check_above, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the two stacked mixtures."""

    first_experts: int  # E1
    second_experts: int  # E2
    hidden_dim: int  # F, width of z1 and z2
    gate_hidden_dim: int = 50  # hidden width of both gates
    constrained_steps: int = 1000  # optimiser steps for which the constraint holds; 0: never
    margin: float = 1000.0  # m, tokens by which an expert's total may exceed the mean, above 0

    def __post_init__(self) -> None:
        check_least(self, first_experts=1, second_experts=1, hidden_dim=1, gate_hidden_dim=1, constrained_steps=0)
        check_above(self, margin=0)


def constrained(logits_TE: Tensor, totals_E: Tensor, margin: float) -> Tensor:
    """softmax over the experts whose total does not exceed the mean by more than `margin`; 0 for the others."""
    over = totals_E - totals_E.mean() > margin
    return logits_TE.masked_fill(over, float("-inf")).softmax(-1)


def mix(x_TD: Tensor, gates_TE: Tensor, proj_EFD: Tensor) -> Tensor:
    """sum_e gates[t, e] relu(proj_e x_t), as one product for all experts."""
    experts = proj_EFD.shape[:2]
    hidden = torch.relu(linear(x_TD, proj_EFD.flatten(0, 1)))
    hidden_TEF = hidden.unflatten(-1, experts)
    gates = gates_TE.to(x_TD.dtype).unsqueeze(-1)
    return (gates * hidden_TEF).sum(1)


@method(
    title="Deep mixture of experts (two stacked soft mixtures)",
    paper="Learning Factored Representations in a Deep Mixture of Experts",
    year=2013,
    tags={"tokenwise"},
)
class DeepMixture(ChannelMixer):
    """Two stacked soft mixtures; see the module's card."""

    config: Config
    totals: Tensor

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        hidden = config.hidden_dim
        gate_hidden = config.gate_hidden_dim
        inputs, experts = (dim, hidden), (config.first_experts, config.second_experts)
        self.gate_hidden = torch.nn.ModuleList(Gate(i, gate_hidden, generator) for i in inputs)
        self.gates = torch.nn.ModuleList(Gate(gate_hidden, e, generator) for e in experts)
        self.first_proj = normal_parameter((experts[0], hidden, dim), generator)
        self.second_proj = normal_parameter((experts[1], hidden, hidden), generator)
        self.down_proj = normal_parameter((dim, hidden), generator)
        self.register_buffer("totals", torch.zeros(sum(experts)))

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]. The routing holds both gates side by side: E1 + E2 experts, of which each E sums to 1."""
        bound = self.training and context.step < self.config.constrained_steps
        first, second = self.totals.split([self.config.first_experts, self.config.second_experts])
        logits1 = self._logits(0, x_TD)
        gates1 = self._gates(logits1, first, bound)
        z1 = mix(x_TD, gates1, self.first_proj)
        logits2 = self._logits(1, z1)
        gates2 = self._gates(logits2, second, bound)
        y = linear(mix(z1, gates2, self.second_proj), self.down_proj)
        scores = torch.cat((gates1, gates2), -1)
        indices = torch.arange(scores.shape[1], device=x_TD.device).expand(scores.shape)
        return Mixed(y, Routing(indices, scores, scores, torch.cat((logits1, logits2), -1)))

    def assigned(self, routing: Routing, mask_T: Tensor | None = None) -> Tensor:
        """What one batch adds to the totals [E1 + E2]; parts of a step and ranks add up. Padding is left out."""
        gates = routing.scores_TE.detach()
        return (gates if mask_T is None else gates[mask_T]).sum(0)

    def update(self, assigned_E: Tensor) -> None:
        """Add one optimiser step's `assigned` to the running totals.

        Raises `ValueError` where it is not one sum of gates for each expert.
        """
        if assigned_E.shape != self.totals.shape:
            raise ValueError(f"assigned has shape {list(assigned_E.shape)}; expected one sum of gates for each of "
                             f"{self.config.first_experts} + {self.config.second_experts} experts")
        with torch.no_grad():
            assigned = assigned_E.to(self.totals)
            self.totals.add_(assigned)

    def after_step(self, routings: Sequence[Routing]) -> None:
        """Add what the optimiser step's batches assigned to the running totals."""
        if routings:
            assigned = [self.assigned(routing) for routing in routings]
            self.update(torch.stack(assigned).sum(0))

    def _logits(self, level: int, v: Tensor) -> Tensor:
        hidden = torch.relu(self.gate_hidden[level](v))
        return self.gates[level](hidden)

    def _gates(self, logits_TE: Tensor, totals_E: Tensor, bound: bool) -> Tensor:
        if bound:
            return constrained(logits_TE, totals_E, self.config.margin)
        return logits_TE.softmax(-1)

    def flops_per_token(self) -> float:
        """2 (E1 D F + E2 F^2 + F D) for experts and output, 2 G (D + F + E1 + E2) for the gates of width G."""
        c = self.config
        hidden = self.config.hidden_dim
        gates = c.gate_hidden_dim * (self.dim + hidden + c.first_experts + c.second_experts)
        first = c.first_experts * self.dim * hidden
        second = c.second_experts * hidden * hidden
        out = hidden * self.dim
        total = first + second + out + gates
        return 2.0 * total


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, three experts below and two above."""
    config = Config(first_experts=3, second_experts=2, hidden_dim=5, gate_hidden_dim=4)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
