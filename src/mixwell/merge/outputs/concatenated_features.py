"""Cat-n: the features of n nets that differ in their seed alone, side by side under one linear probe.

**Equation:** z(x) = [f_1(x), .., f_n(x)], nets frozen; probe = Linear(BatchNorm(z)), weights N(0, 0.01), bias 0, weight
    decay on the map alone. In-distribution reference: the mean of the nets' own logits.
**Shapes:** features [N, n d], logits [N, C].
**Reference:** Zhang and Bottou 2022 (2212.07346), section 3, and the authors' code.
**Differs:** the probe is fitted by full-batch steps of AdamW. The distilled form is left to `train`.
**Fails when:** few labels and many features: the decay has to be chosen anew for each width.
**Cost:** n forward passes an input; O(n d C) a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the probe."""

    weight_decay: float = 1e-3
    lr: float = 0.01
    steps: int = 200

    def __post_init__(self) -> None:
        if self.weight_decay < 0 or self.lr <= 0 or self.steps < 1:
            raise ValueError(f"weight_decay is {self.weight_decay}, lr {self.lr}, steps {self.steps}; expected 0 or "
                             "more, above 0, 1 or more")


@method(title="Concatenated features (Cat-n)",
        paper="Learning useful representations for shifting tasks and distributions", year=2023)
class ConcatenatedFeatures(nn.Module):
    """A linear probe on the features of several nets."""

    def __init__(self, dims: Sequence[int], classes: int, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.dims = config, tuple(dims)
        width = sum(dims)
        self.norm = nn.BatchNorm1d(width)
        self.probe = skip_init(nn.Linear, width, classes)
        with torch.no_grad():
            self.probe.weight.copy_(0.01 * torch.randn(self.probe.weight.shape, generator=generator))
            self.probe.bias.zero_()

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits [N, C] from each net's features [N, d]; no gradient reaches the nets."""
        widths = [one.shape[-1] for one in features]
        expected = list(self.dims)
        if widths != expected:
            raise ValueError(f"features of widths {widths} came; expected {expected}")
        frozen = [one.detach() for one in features]
        together = torch.cat(frozen, dim=-1)
        standard = self.norm(together)
        return self.probe(standard)

    def fit(self, features: Sequence[Tensor], labels_N: Tensor) -> float:
        """Fit the probe to labels, and return the last loss; the norm then uses what it saw."""
        groups = [{"params": [self.probe.weight], "weight_decay": self.config.weight_decay},
                  {"params": [self.probe.bias, *self.norm.parameters()], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.config.lr)
        self.train()
        loss = torch.zeros(())
        for _ in range(self.config.steps):
            loss = F.cross_entropy(self(features), labels_N)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.eval()
        return float(loss.detach())


def example(generator: torch.Generator) -> dict[str, Any]:
    """A probe on two nets' features."""
    dims = (3, 3)
    return {"dims": dims, "classes": 4, "config": Config(), "generator": generator}
