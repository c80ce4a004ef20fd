"""The contract of layers that stand where a feed-forward block stood, and what they share.

Legend: T tokens, D width, F hidden width, E experts, N rows sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixwell.core.routing import Context, Routing, combine, dispatch, plan
from mixwell.kernels.experts import expert_mlp
from mixwell.kernels.linear import Weight, linear
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
        if routings and hasattr(router, "update"):
            router.update(torch.stack([routing.load_E() for routing in routings]).sum(0))  # type: ignore[union-attr]


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
        x_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        return nn.functional.linear(x_TD, self.weight.to(x_TD.dtype), self.bias)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": nn.functional.gelu}


def routed_swiglu(layer: nn.Module, x_TD: Tensor, routing: Routing) -> Tensor:
    """The tokens through the SwiGLU experts they chose: the layer's gate_up_proj [E, 2 F, D], down_proj [E, D, F]."""
    order = plan(routing.indices_TK, routing.num_experts)
    rows = expert_mlp(dispatch(x_TD, order), order.counts_E, weight_of(layer, "gate_up_proj"),
                      weight_of(layer, "down_proj"))
    return combine(rows, order, routing.weights_TK)


def routed_mlp(x_TD: Tensor, routing: Routing, up_proj: Weight, down_proj: Weight,
               activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The tokens through the two-matrix experts that they chose: up_proj [E, F, D], down_proj [E, D, F]."""
    order = plan(routing.indices_TK, routing.num_experts)
    counts = order.counts_E.tolist()
    parts = dispatch(x_TD, order).split(counts)
    rows = [linear(activation(linear(part, up)), down)
            for part, up, down in zip(parts, _experts_of(up_proj), _experts_of(down_proj)) if part.shape[0]]
    return combine(torch.cat(rows) if rows else x_TD[:0], order, routing.weights_TK)


def _experts_of(weight: Weight) -> list[Weight]:
    """One weight for each expert; a plain stack is unbound in one step, so that its gradient is written once."""
    return list(weight.unbind(0)) if isinstance(weight, Tensor) else [weight[e] for e in range(weight.shape[0])]
