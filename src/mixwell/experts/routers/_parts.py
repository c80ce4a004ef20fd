"""The routers' contract, and the steps that most of them share.

Legend: T tokens, D width, E experts, K slots per token.
"""

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

    def __init__(self, dim: int, num_experts: int, config: Any, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim, self.num_experts, self.config = dim, num_experts, config

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        raise NotImplementedError


class LinearRouter(Router):
    """A router whose logits are one float32 linear map of the token; subclasses say what follows."""

    def __init__(self, dim: int, num_experts: int, config: Any, generator: torch.Generator | None = None) -> None:
        super().__init__(dim, num_experts, config, generator)
        self.weight = nn.Parameter(normal((num_experts, dim), 0.02, generator))

    def logits(self, x_TD: Tensor) -> Tensor:
        """Router logits [T, E] in float32 or better."""
        x = wide(x_TD)
        return x @ self.weight.to(x.dtype).T


def normal(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> Tensor:
    """A float32 tensor of independent normal draws."""
    device = generator.device if generator is not None else None
    return torch.randn(shape, generator=generator, device=device) * std


def wide(x: Tensor) -> Tensor:
    """float32 for half-width types; float32 and float64 stay as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def check_k(k: int, num_experts: int) -> None:
    """Refuse a k that the experts cannot serve."""
    if not 1 <= k <= num_experts:
        raise ValueError(f"k = {k} experts per token of {num_experts}; choose 1 to {num_experts}")


def select(scores_TE: Tensor, k: int, *, by_TE: Tensor | None = None, renormalise: bool = False,
           scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The k best experts of each token by `by_TE` (default: the scores), weighted by their scores.

    Returns (indices_TK, weights_TK). With `renormalise` the weights of a token sum to `scale`.
    """
    indices = (scores_TE if by_TE is None else by_TE).topk(k, dim=-1).indices
    weights = scores_TE.gather(-1, indices)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return indices, weights if scale == 1.0 else weights * scale
