"""JAM: twins of one shape, one a kind of data, made into one model: side by side, or joined by cross-attention.

**Equation:** Width: maps become diag(W_a, W_b), embeddings and gains stand one behind the other, the head is
    [H_a, H_b] / 2. Cross: both stacks stay; every c-th layer adds tanh(g) Attn(h_a -> h_b) to each, g = 0 at the start;
    the answer is a linear map of both logits that begins as their mean.
**Shapes:** hidden [B, T, D] of each twin.
**Reference:** Aiello et al. 2023 (2309.15564), section 3; the uniform fusion is `merge.linear`.
**Differs:** details that the paper leaves open are ours: the off-diagonal blocks are 0, one gate a direction, causal
    single-head cross-attention with rows of 1 / sqrt(D). Norms have to be per half for Width to keep each parent's
    function.
**Fails when:** the twins share no ancestor (Uniform is noise then).
**Cost:** twice the parameters and FLOPs of a twin; Cross O(T^2 D) more a joint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the cross fusion."""

    every: int = 2  # c: layers between two joints

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}; expected 1 or more")


def wide_map(first: Tensor, second: Tensor) -> Tensor:
    """diag(W_a, W_b)."""
    return torch.block_diag(first, second)


def wide_rows(first: Tensor, second: Tensor) -> Tensor:
    """Embeddings [V, 2 D] or gains [2 D]: one behind the other in the last axis."""
    return torch.cat([first, second], dim=-1)


def wide_head(first: Tensor, second: Tensor) -> Tensor:
    """The head [V, 2 D] whose logits are the mean of both twins'."""
    return torch.cat([first, second], dim=-1) / 2


class CrossAttention(nn.Module):
    """What one stack reads of the other; nothing at the start."""

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.query, self.key, self.value = (self._map(dim, generator) for _ in range(3))
        self.gate = nn.Parameter(torch.zeros(()))

    @staticmethod
    def _map(dim: int, generator: torch.Generator) -> nn.Parameter:
        draws = torch.randn(dim, dim, generator=generator)
        return nn.Parameter(draws * dim**-0.5)

    def forward(self, own_BTD: Tensor, other_BTD: Tensor) -> Tensor:
        """own_BTD and what was read; no position reads a later one."""
        q = own_BTD @ self.query.T
        k = other_BTD @ self.key.T
        v = other_BTD @ self.value.T
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return own_BTD + self.gate.tanh() * read


@method(title="Joint autoregressive fusion (JAM)", paper="Jointly Training Large Autoregressive Multimodal Models",
        year=2024)
class JointFusion(nn.Module):
    """Two stacks of layers with gated cross-attention between them. layers: of each stack, functions of [B, T, D]."""

    def __init__(self, first: Sequence[Layer], second: Sequence[Layer], dim: int, config: Config,
                 generator: torch.Generator) -> None:
        super().__init__()
        if len(first) != len(second):
            raise ValueError(f"{len(first)} and {len(second)} layers came; expected twins of one depth")
        self.config = config
        self.first, self.second = _kept(first), _kept(second)
        count = len(first) // config.every
        self.into_first, self.into_second = nn.ModuleList(), nn.ModuleList()
        for _ in range(count):
            self.into_first.append(CrossAttention(dim, generator))
            self.into_second.append(CrossAttention(dim, generator))
        self.join = nn.Parameter(torch.tensor([0.5, 0.5]))

    def forward(self, first_BTD: Tensor, second_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of both stacks after all layers."""
        joints = zip(self.into_first, self.into_second)
        pairs = enumerate(zip(self.first, self.second), start=1)
        for number, (one, other) in pairs:
            first_BTD, second_BTD = one(first_BTD), other(second_BTD)
            if number % self.config.every == 0:
                into_first, into_second = next(joints)
                read = into_first(first_BTD, second_BTD)
                second_BTD = into_second(second_BTD, first_BTD)
                first_BTD = read
        return first_BTD, second_BTD

    def joined(self, first_BTV: Tensor, second_BTV: Tensor) -> Tensor:
        """The logits of both heads as one: their mean at the start."""
        first, second = self.join
        return first * first_BTV + second * second_BTV


def _kept(layers: Sequence[Layer]) -> Any:
    """As a module where the layers are modules, so that their parameters are trained, too."""
    modules = [layer for layer in layers if isinstance(layer, nn.Module)]
    if len(modules) < len(layers):
        return list(layers)
    return nn.ModuleList(modules)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Twins of two layers, width four."""
    return {"first": [torch.tanh, torch.tanh], "second": [torch.tanh, torch.sin], "dim": 4, "config": Config(),
            "generator": generator}
