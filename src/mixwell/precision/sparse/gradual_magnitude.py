"""Gradual magnitude pruning: the smallest weights go little by little over the middle of a training, then stay away.

**Equation:** s_t = s_f - s_f (1 - u)^3, u the share of the pruning's span that is done; at each of `updates` moments
    the s_t of smallest |w| of every matrix are masked. Outside the span the mask stays. Masked weights get no gradient.
**Shapes:** W [.., O, I]; an expert's share is its own.
**Reference:** Zhu and Gupta 2017 (1710.01878), equation 1; as the pruning beside which a chip for up to 32-fold
    sparsity is used (Yen et al. 2022, 2207.08006).
**Differs:** the chip is not here. Counting the same number of nonzeros as equal work, as it does, leaves out the bytes
    of their places.
**Fails when:** pruning ends with the training, so that nothing is left to make good.
**Cost:** a sort of each matrix an update; training costs what the dense one does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.precision.sparse.sparsifier import Sparsifier, largest_share, original, sparsifier_example

CUBIC = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of gradual magnitude pruning."""

    share: float = 0.9  # s_f, of every matrix that goes, above 0 and below 1
    begin: float = 0.2  # share of the training at which pruning begins, at least 0
    end: float = 0.8  # and at which it is done, above begin, up to 1
    updates: int = 50  # of the masks between both, at least 1
    weights: tuple[str, ...] = ("*",)  # patterns of the names of matrices

    def __post_init__(self) -> None:
        check_least(self, begin=0, updates=1)
        check_above(self, share=0)
        if not self.share < 1:
            raise ValueError(f"share is {self.share}; expected above 0 and below 1")
        ordered = self.begin < self.end <= 1
        if not ordered:
            raise ValueError(f"begin is {self.begin} and end {self.end}; expected begin < end <= 1")


def gone(done: float, config: Config) -> float:
    """s_t at a share of the training."""
    span = config.end - config.begin
    whole = (done - config.begin) / span
    inside = min(max(whole, 0.0), 1.0)
    steps = int(inside * config.updates + 1e-9)
    left = 1 - steps / config.updates
    return config.share - config.share * left**CUBIC


class _Masked(nn.Module):
    """A weight without what was pruned."""

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


@method(title="Gradual magnitude pruning",
        paper="S4: a High-sparsity, High-performance AI Accelerator", year=2022, tags={"weights"})
class GradualMagnitude(Sparsifier):
    """Trains all parameters while the smallest weights go. Draws nothing from `generator`."""

    def __init__(self, model: nn.Module, config: Config, generator: torch.Generator) -> None:
        super().__init__(model, config.weights)
        self.config, self.share = config, 0.0
        self.forms = [_Masked(getattr(owner, name).detach()) for owner, name in self.places]
        self.put(self.forms)

    def advance(self, done: float) -> None:
        """Prune to the share that is due; between two updates masks stay."""
        share = gone(done, self.config)
        if share <= self.share:
            return
        self.share = share
        for (owner, name), form in zip(self.places, self.forms):
            weight = original(owner, name).detach()
            left = weight * form.mask
            form.mask = largest_share(left.abs(), 1 - share)


def example(generator: torch.Generator) -> dict[str, Any]:
    """A small network of whose weights half go."""
    return sparsifier_example(generator, Config(share=0.5))
