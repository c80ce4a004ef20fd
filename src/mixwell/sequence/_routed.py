"""What sequence mixers share that treat tokens differently: maps in copies.

Legend: M copies, N rows sorted by copy, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixwell.core.rng import normal
from mixwell.kernels.linear import linear


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
