"""Layer-wise recurrent router: a small recurrent cell, shared over depth, remembers how a token was routed so far.

**Equation:** u_l = W_l x_l;  h_l = GRU(u_l, h_{l-1}), one GRU for all layers, h_0 = 0;  p_l = softmax(G_l h_l);
    I = top-k of p_l;  w_i = p_i / sum_{j in I} p_j.  The recurrence runs over layers, for every token alone.
**Shapes:** x [T, D]; W [R, D]; h and the state [T, R]; G [E, R]; weights [T, K].
**Reference:** Qiu et al. 2024 (2408.06793), eq. 4-6, and the authors' code.
**Differs:** at k = 1 the weight is p_i. A router alone has a cell of its own; whoever stacks layers calls
    `share(first)` on the later ones, which then use the first one's cell and save none. The projector and the cell
    start at std 1 / sqrt(fan in), the gate at 0.02.
**Fails when:** nobody calls `share` or hands the state on: it is then an MLP router with a gate.
**Cost:** O(T R (D + 6 R + E)), R well below D.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import project
from mixwell.kernels.norm import wide
from mixwell.mixing import Router, check_choice, check_k, check_least, normal_parameter, softmax_top_k


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the recurrent router."""

    k: int = 2  # experts per token, 1 to E
    renormalise: bool | None = None  # weights of a token sum to 1; default: wherever k > 1
    state_dim: int = 128  # R, width of the recurrent state, at least 1 (the paper's p)
    cell: Literal["gru", "rnn"] = "gru"  # rnn: h = tanh(A u + B h), the authors' ablation
    carry_gradient: bool = True  # whether the gradient runs back through the earlier layers' states

    def __post_init__(self) -> None:
        check_choice(self.k, self.renormalise)
        check_least(self, state_dim=1)


class Cell(nn.Module):
    """The recurrent cell [R] -> [R]; its gates r, z, n lie one above the other, as in `torch.nn.GRUCell`."""

    def __init__(self, dim: int, kind: str, generator: torch.Generator | None) -> None:
        super().__init__()
        self.kind = kind
        rows = 3 * dim if kind == "gru" else dim
        std = dim**-0.5
        self.weight_ih = normal_parameter((rows, dim), generator, std)
        self.weight_hh = normal_parameter((rows, dim), generator, std)
        self.bias_ih = nn.Parameter(self.weight_ih.new_zeros(rows))
        self.bias_hh = nn.Parameter(self.weight_ih.new_zeros(rows))

    def forward(self, u_TR: Tensor, h_TR: Tensor) -> Tensor:
        """The next state [T, R]."""
        parameters = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        same_type = (p.to(u_TR.dtype) for p in parameters)
        return step(self.kind, u_TR, h_TR, *same_type)


def step(kind: str, u_TR: Tensor, h_TR: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor,
         bias_hh: Tensor) -> Tensor:
    """One step of the cell: r, z = sigmoid; n = tanh(A u + r * (B h)); h' = (1 - z) n + z h."""
    from_u = u_TR @ weight_ih.T + bias_ih
    from_h = h_TR @ weight_hh.T + bias_hh
    if kind == "rnn":
        return (from_u + from_h).tanh()
    reset_u, update_u, new_u = from_u.chunk(3, -1)
    reset_h, update_h, new_h = from_h.chunk(3, -1)
    reset = (reset_u + reset_h).sigmoid()
    update = (update_u + update_h).sigmoid()
    new = (new_u + reset * new_h).tanh()
    return (1 - update) * new + update * h_TR


@method(
    title="Layer-wise recurrent router",
    paper="Layerwise Recurrent Router for Mixture-of-Experts",
    year=2024,
    tags={"token-choice", "batch-invariant", "exact-k", "simplex", "dense-at-full-k"},
)
class Recurrent(Router):
    """Recurrent router; reads `Context.state` and hands its own state on in `Routing.state`."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        super().__init__(dim, num_experts, config, generator)
        width = config.state_dim
        self.projector = normal_parameter((width, dim), generator, dim**-0.5)
        self.weight = normal_parameter((num_experts, width), generator)
        self.cell: Cell | None = Cell(width, config.cell, generator)
        self._first: tuple[Recurrent, ...] = ()  # in a tuple, so that its parameters are not counted here again

    def share(self, first: Router) -> None:
        """Use the cell of the first layer's router from now on, and drop this one's own.

        Raises `ValueError` where `first` holds no cell, or one of another kind or width.
        """
        if first is self:
            return
        if not isinstance(first, Recurrent) or first.cell is None:
            raise ValueError("share() takes the recurrent router of the first mixture layer, which holds the cell")
        theirs = first.config
        own = self.config
        if (theirs.state_dim, theirs.cell) != (own.state_dim, own.cell):
            raise ValueError(f"cannot share a {theirs.cell} of width {theirs.state_dim} with a router that asks for a "
                             f"{own.cell} of width {own.state_dim}; set both alike")
        self.cell, self._first = None, (first,)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D] by their own state, which starts at zero in the first layer.

        Raises `ValueError` for a state of another shape.
        """
        x = wide(x_TD)
        cell = self.cell
        if cell is None:
            cell = self._first[0].cell
        assert cell is not None
        u = project(x, self.projector)
        state = cell(u, self._state(x, context))
        logits = project(state, self.weight)
        routing = softmax_top_k(logits, self.config.k, self.config.renormalise)
        return replace(routing, state=state)



    def _state(self, x_TD: Tensor, context: Context) -> Tensor:
        """The state of the layer before, zeros in the first."""
        state, shape = context.state, (len(x_TD), self.config.state_dim)
        if state is None:
            return x_TD.new_zeros(shape)
        if state.shape != shape:
            raise ValueError(f"the state has shape {tuple(state.shape)}; expected {shape} from the recurrent router "
                             "of the layer before")
        state = state.to(x_TD.dtype)
        return state if self.config.carry_gradient else state.detach()


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts, a state of width five from the layer before."""
    x_TD = torch.randn(8, 6, generator=generator)
    state = torch.randn(8, 5, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(state_dim=5), "x_TD": x_TD,
            "context": Context(layer=1, state=state)}
