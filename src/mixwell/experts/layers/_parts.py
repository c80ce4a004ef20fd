"""The contract of layers that stand where a feed-forward block stood, and what they share.

Legend: T tokens, D width, F hidden width, E experts, N rows sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixwell.core.routing import Context, Routing, combine, dispatch, plan
from mixwell.kernels.experts import each_expert, expert_mlp
from mixwell.kernels.linear import Weight
from mixwell.kernels.norm import wide
from mixwell.kernels.packing import weight_of
from mixwell.mixing import Mixed, normal_parameter


class ChannelMixer(nn.Module):
    """A layer acts on each token's channels: `forward(x_TD, context) -> Mixed`.

    Built as `Layer(dim, config, generator)`. `flops_per_token()` counts two for each multiply-add of one forward pass.
    """

    dim: int
    config: Any

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """Mix the channels of tokens [T, D]."""
        raise NotImplementedError

    def flops_per_token(self) -> float:
        """Forward FLOPs per token, active experts only."""
        raise NotImplementedError

    def after_step(self, routings: Sequence[Routing]) -> None:
        """Called after each optimiser step with the routings of its forward passes; routers follow their load here."""
        router = getattr(self, "router", None)
        if not routings or not hasattr(router, "update"):
            return
        loads = [routing.load_E() for routing in routings]
        router.update(torch.stack(loads).sum(0))  # type: ignore[union-attr]


class Gate(nn.Module):
    """A linear map whose parameters and result stay float32 or better, for what decides between experts."""

    keep_float32: ClassVar[bool] = True  # read by whoever casts a model

    def __init__(self, dim: int, outputs: int, generator: torch.Generator | None = None, *, bias: bool = False,
                 std: float = 0.02) -> None:
        super().__init__()
        self.weight = normal_parameter((outputs, dim), generator, std)
        self.bias = nn.Parameter(self.weight.new_zeros(outputs)) if bias else None

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, outputs]."""
        x = wide(x_TD)
        weight = self.weight.to(x.dtype)
        return nn.functional.linear(x, weight, self.bias)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its approximation with tanh."""
    return nn.functional.gelu(x, approximate="tanh")


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu, "gelu": nn.functional.gelu, "gelu_tanh": gelu_tanh, "silu": nn.functional.silu}


def routed_swiglu(layer: nn.Module, x_TD: Tensor, routing: Routing) -> Tensor:
    """The tokens through the SwiGLU experts they chose: the layer's gate_up_proj [E, 2 F, D], down_proj [E, D, F]."""
    order = plan(routing.indices_TK, routing.num_experts)
    rows = dispatch(x_TD, order)
    gate_up = weight_of(layer, "gate_up_proj")
    down = weight_of(layer, "down_proj")
    rows = expert_mlp(rows, order.counts_E, gate_up, down)
    return combine(rows, order, routing.weights_TK)


def routed_mlp(x_TD: Tensor, routing: Routing, up_proj: Weight, down_proj: Weight,
               activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The tokens through the two-matrix experts that they chose: up_proj [E, F, D], down_proj [E, D, F]."""
    order = plan(routing.indices_TK, routing.num_experts)
    rows = dispatch(x_TD, order)
    rows = each_expert(rows, order.counts_E.tolist(), up_proj, down_proj, activation)
    return combine(rows, order, routing.weights_TK)


def clamped_swiglu(gate_up: Tensor, limit: float, alpha: float) -> Tensor:
    """g sigmoid(alpha g) (u + 1) of gate and up side by side, g cut at `limit`, u at -limit and limit: [..., F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    gate = gate.clamp(max=limit)
    up = up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)
