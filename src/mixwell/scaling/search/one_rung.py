"""One epoch for everyone, the rest for the best few: successive halving with one rung.

**Equation:** n configurations are trained for one epoch; the K of the lowest validation loss are trained on to R; the
    best of them is the answer. Cost n + K (R - 1) epochs.
**Shapes:** trials in; one trial, its loss and the epochs spent out.
**Reference:** Egele et al. 2023 (2307.15422).
**Differs:** the rung lies after `first` epochs, 1 in the paper.
**Fails when:** the order after the rung is not that of the end: an epoch of few steps, or a warm-up that makes large
    learning rates look bad at first.
**Cost:** n first + K (R - first) epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.method import method
from mixwell.scaling.search._planted import power_curves
from mixwell.scaling.trials import Found, Trials, lowest


@dataclass(frozen=True, kw_only=True)
class Config:
    """How many start and how many end; `ValueError` for a value out of range."""

    candidates: int = 32  # n, at least 1
    keep: int = 3  # K, 1 to n
    first: int = 1  # epochs before the rung, at least 1

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.candidates:
            raise ValueError(f"keep is {self.keep} of {self.candidates} candidates; expected 1 to all of them")
        if self.first < 1:
            raise ValueError(f"first is {self.first}; expected at least 1")


@method(title="One epoch", year=2023,
        paper="Is One Epoch All You Need For Multi-Fidelity Hyperparameter Optimization?")
def one_rung(trials: Trials, config: Config, generator: np.random.Generator) -> Found:
    """The best fully trained one of those that led after the rung."""
    candidates = trials.drawn(config.candidates, generator)
    early = trials.losses(candidates, config.first)
    leaders = lowest(early, config.keep)
    final = trials.losses(leaders, trials.most)
    return trials.found(final)


def example(generator: np.random.Generator) -> dict[str, Any]:
    """All of forty configurations."""
    return {"trials": power_curves(40, 9, generator), "config": Config(candidates=40)}
