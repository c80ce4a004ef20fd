"""Progressive N:M sparsity: weights outside the mask fade, or the pattern tightens step by step, as training goes on.

**Equation:** M keeps the N largest |w| of each M neighbours of a row, chosen anew at every pass. Mask decay: the pass
    reads W (M + b (1 - M)), b = max(0, 1 - t / span) (linear) or exp(-rate t) (exponential), t the share done.
    Structure decay: patterns M-1:M, M/2:M, M/4:M, .., N:M (stepwise) or 8N:8M, 4N:4M, 2N:2M, N:M (geometric) over equal
    shares. Gradients reach W unscaled.
**Shapes:** W [.., O, I], groups along I.
**Reference:** Bambhaniya et al. 2024 (2402.04744), sections 4.1 and 4.2, and the authors' code.
**Differs:** decay by the share of the training done, not by steps. `finish` leaves the hard mask, where an exponential
    never comes to 0.
**Fails when:** decay ends after the learning rate is gone, or patterns are mild (2:4), where nothing is gained.
**Cost:** one sort of each group a pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.mixing import check_above
from mixwell.precision.sparse.sparsifier import Sparsifier, largest_of_groups, original, sparsifier_example, straight

Decay = Literal["linear", "exponential", "stepwise", "geometric"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of progressive N:M sparsity."""

    kept: int = 1  # N, at least 1
    group: int = 16  # M, above N
    decay: Decay = "linear"  # of the mask: linear, exponential; of the structure: stepwise, geometric
    span: float = 0.6  # share of the training over which a linear mask fades, above 0, up to 1
    rate: float = 6.0  # of the exponential fading over the whole training, above 0
    weights: tuple[str, ...] = ("*",)  # patterns of the names of matrices

    def __post_init__(self) -> None:
        check_above(self, span=0, rate=0)
        ordered = 1 <= self.kept < self.group
        if not ordered:
            raise ValueError(f"kept is {self.kept} of {self.group}; expected 1 <= kept < group")
        if self.span > 1:
            raise ValueError(f"span is {self.span}; expected above 0, up to 1")


def leak(done: float, config: Config) -> float:
    """b: what is read of a weight outside the mask."""
    if config.decay == "linear":
        return max(0.0, 1 - done / config.span)
    if config.decay == "exponential":
        return math.exp(-config.rate * done)
    return 0.0


def patterns(config: Config) -> list[tuple[int, int]]:
    """The patterns (N, M) that follow one another."""
    n, m = config.kept, config.group
    if config.decay == "geometric":
        return [(factor * n, factor * m) for factor in (8, 4, 2, 1)]
    if config.decay != "stepwise":
        return [(n, m)]
    found = [(m - 1, m)]
    half = m // 2
    while half > n:
        found.append((half, m))
        half //= 2
    return [*found, (n, m)]


def pattern(done: float, config: Config) -> tuple[int, int]:
    """The pattern at a share of the training."""
    every = patterns(config)
    frame = int(done * len(every))
    return every[min(frame, len(every) - 1)]


class _Fading(nn.Module):
    """A weight as it is read."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.shape = pattern(0.0, config)
        self.leak = leak(0.0, config)

    def forward(self, weight: Tensor) -> Tensor:
        mask = largest_of_groups(weight, *self.shape)
        faded = self.leak * (1 - mask)
        return straight(weight, mask + faded)


@method(title="Progressive N:M sparsity",
        paper="Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers", year=2024,
        tags={"weights"})
class ProgressiveNM(Sparsifier):
    """Trains all parameters while those outside the mask fade. Draws nothing from `generator`.

    Raises `MixwellError` where groups do not divide a row.
    """

    def __init__(self, model: nn.Module, config: Config, generator: torch.Generator) -> None:
        super().__init__(model, config.weights)
        self.config = config
        widest = patterns(config)[0]
        for owner, name in self.places:
            largest_of_groups(getattr(owner, name), *widest)  # refuses before anything is changed
        self.forms = [_Fading(config) for _ in self.places]
        self.put(self.forms)

    def advance(self, done: float) -> None:
        """Fade, or tighten, to this share of the training."""
        for form in self.forms:
            form.shape = pattern(done, self.config)
            form.leak = leak(done, self.config)

    def outside(self) -> list[Tensor]:
        """Of each matrix what the mask does not keep, with a gradient: what SR-STE lets decay."""
        found = []
        for (owner, name), form in zip(self.places, self.forms):
            weight = original(owner, name)
            mask = largest_of_groups(weight, *form.shape)
            found.append(weight * (1 - mask))
        return found

    def finish(self) -> None:
        """Leave N of M weights, whatever is left of the fading."""
        for form in self.forms:
            form.shape = self.config.kept, self.config.group
            form.leak = 0.0
        super().finish()


def example(generator: torch.Generator) -> dict[str, Any]:
    """A small network at 1:4."""
    return sparsifier_example(generator, Config(group=4))
