"""Small networks of the family, drawn from a generator that is handed in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A layer whose weights keep the size of what passes a rectifier; float64."""
    layer: nn.Linear = skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / inputs), generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Perceptron(nn.Module):
    """Layers of these widths with rectifiers between them, none after the last."""

    def __init__(self, widths: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        pairs = itertools.pairwise(widths)
        self.layers = nn.ModuleList(linear(inputs, outputs, generator) for inputs, outputs in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """What comes of rows (..., widths[0])."""
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).relu()
        return last(x)
