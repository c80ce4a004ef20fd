"""The contract of routers, which layers and sequence mixers hold without knowing the method."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixwell.core.routing import Context, Routing


class Router(nn.Module):
    """A router turns tokens into a `Routing`: `forward(x_TD, context) -> Routing`.

    Its parameters stay float32 whatever the model's compute type, and so does everything up to the choice.
    """

    keep_float32: ClassVar[bool] = True  # read by whoever casts a model
    has_logits: ClassVar[bool] = True  # False where the choice is not learnt, so that no balance loss can act on it

    def __init__(self, dim: int, num_experts: int, config: Any, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.num_experts = num_experts
        self.config = config

    @property
    def experts_per_token(self) -> float:
        """Experts that a token visits on average, for counting FLOPs; the most it can visit where that varies."""
        return float(getattr(self.config, "k", self.num_experts))

    def share(self, first: Router) -> None:
        """Called by whoever stacks layers, with the router of the first mixture layer of the same method, before
        training or loading; a router that keeps some of its parameters in common over depth takes them from there."""

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        raise NotImplementedError
