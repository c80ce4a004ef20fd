"""What sequence mixers share that treat tokens differently: maps in copies, and routers that look at no other token.

Legend: M copies, N rows sorted by copy, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core import registry
from mixwell.core.errors import MixwellError
from mixwell.core.rng import normal
from mixwell.kernels.linear import linear

ROUTERS = "experts.routers"


def causal_router(spec: Mapping[str, Any]) -> registry.Entry:
    """The router that a spec names; `MixwellError` for one that looks at other tokens: it would look at later ones."""
    name = str(spec.get("method", "top_k"))
    entry = registry.find(name, ROUTERS)
    if "batch-invariant" not in entry.tags:
        raise MixwellError(f"router {entry.name} looks at other tokens, later ones too; a causal mixer needs one that "
                           "routes each token by itself, such as top_k.")
    return entry


class StackedLinear(nn.Module):
    """x W_m^T + b_m, m the row's copy; weights of normal draws, std 0.02, biases that start at 0."""

    def __init__(self, copies: int, inputs: int, outputs: int, bias: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal((copies, outputs, inputs), 0.02, generator))
        self.bias = nn.Parameter(self.weight.new_zeros(copies, outputs)) if bias else None

    def forward(self, rows_NI: Tensor, counts_M: Tensor) -> Tensor:
        """[N, I] -> [N, O]: the first counts[0] rows go through copy 0, and so on."""
        parts = rows_NI.split(counts_M.tolist())
        copies = zip(parts, self.weight.unbind(0))
        done = [linear(part, weight) for part, weight in copies]
        if self.bias is not None:
            biased = zip(done, self.bias.unbind(0))
            done = [part + bias for part, bias in biased]
        return torch.cat(done)
