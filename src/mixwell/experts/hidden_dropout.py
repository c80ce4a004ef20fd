"""Dropout inside the experts: hidden activations of routed experts drop out more often than the dense layers' do.

**Equation:** h' = h * m / (1 - rate), m Bernoulli(1 - rate), drawn for each hidden unit of each row.
**Shapes:** h [N, F], the rows of all experts in expert order, between the activation and the down projection.
**Reference:** Fedus et al. 2021 (2101.03961), section 2.4, "expert dropout".
**Differs:** from memory of the paper: rate 0.4 inside experts beside 0.1 elsewhere. Without a generator nothing drops.
**Fails when:** used in pre-training on plenty of data, where the paper uses none; it is meant for fine-tuning.
**Cost:** O(N F).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the dropout inside experts."""

    rate: float = 0.4  # probability that a hidden unit drops, 0 up to 1

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate is {self.rate}; expected 0 up to 1")


@method(
    title="Dropout inside experts",
    paper="Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity",
    year=2021,
)
def hidden_dropout(h_NF: Tensor, config: Config, context: Context) -> Tensor:
    """The activations [N, F] with units dropped and the rest scaled up; unchanged where `context` has no generator."""
    draws = context.generator
    if draws is None or not config.rate:
        return h_NF
    draw = torch.rand(h_NF.shape, generator=draws, device=draws.device)
    alive = (draw >= config.rate).to(h_NF)
    return h_NF * (alive / (1 - config.rate))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five rows of hidden width six."""
    h_NF = torch.randn(5, 6, generator=generator)
    return {"h_NF": h_NF, "config": Config(), "context": Context(generator=generator)}
