"""mix-cd: rehearse where the model in training forgets what the model before it knew.

**Equation:** for rehearsed samples of the batch: n_k += 1, d_k += [right before and wrong now];
    rho_k = (d_k + e) / (n_k + K e); the next sample's cell is drawn with P(k) in proportion to size_k^x rho_k.
**Shapes:** per sample its cell, and whether it was and is right [T]; n, d, rho [K]. A cell is a domain here: a task, a
    cluster of embeddings, a bin of the old model's confidence, or a product of them.
**Reference:** Bai et al. 2024 (2402.08096).
**Differs:** the paper was read in summaries: the smoothing e, and forgetting counts by a factor a step instead of at
    the end of a window, are ours. Samples come from batches that hold them anyway, so that no forward pass is added.
**Fails when:** forgetting is even over the cells, or there are more cells than a window has samples.
**Cost:** O(T + K) a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.data.rule import Batch, Rule, State, counts, example_batches


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of mix-cd; `ValueError` for a value out of range."""

    prior: float = 1.0  # e, above 0
    memory: float = 0.99  # share of the counts that is kept at each step, above 0 and at most 1
    sizes: tuple[float, ...] = ()  # samples of each cell, above 0; empty: all alike
    size_power: float = 1.0  # x, 0 or more

    def __post_init__(self) -> None:
        if not self.prior > 0:
            raise ValueError(f"prior is {self.prior}; expected a number above 0")
        if not 0 < self.memory <= 1:
            raise ValueError(f"memory is {self.memory}; expected a number above 0 and at most 1")
        if any(not size > 0 for size in self.sizes):
            raise ValueError(f"sizes are {self.sizes}; expected numbers above 0")
        if not self.size_power >= 0:
            raise ValueError(f"size_power is {self.size_power}; expected 0 or more")


@method(title="Rehearsal where it is forgotten (mix-cd)", year=2024,
        paper="An Efficient Rehearsal Scheme for Catastrophic Forgetting Mitigation during Multi-stage Fine-tuning")
class Rehearsal(Rule):
    """Cells by their density of collateral damage."""

    def __init__(self, domains: int, config: Config | None = None) -> None:
        super().__init__(domains, config)
        given = len(self.config.sizes)
        if given not in (0, domains):
            raise MixwellError(f"{given} sizes came for {domains} cells.")

    def default(self) -> Config:
        """Cells of one size."""
        return Config()

    def start(self) -> State:
        """Nothing seen."""
        none_D = np.zeros(self.domains)
        return {"seen": none_D, "damaged": none_D}

    def step(self, state: State, batch: Batch) -> State:
        """Older counts fade, the batch's are added."""
        why = "mix-cd counts what was right before and is wrong now"
        was_T = batch.asked("was_right_T", why)
        is_T = batch.asked("is_right_T", why)
        lost_T = was_T.astype(bool) & ~is_T.astype(bool)
        cell_T = batch.domain_T
        met_D = counts(cell_T, self.domains)
        lost_D = counts(cell_T[lost_T], self.domains)
        keep = self.config.memory
        seen_D = keep * state["seen"] + met_D
        damaged_D = keep * state["damaged"] + lost_D
        return {"seen": seen_D, "damaged": damaged_D}

    def density(self, state: State) -> np.ndarray:
        """rho [K]: per sample seen, so that a cell that is drawn more often gains nothing by that."""
        prior = self.config.prior
        seen_D = state["seen"] + self.domains * prior
        return (state["damaged"] + prior) / seen_D

    def weights(self, state: State) -> np.ndarray:
        """P [K] of the next rehearsed sample."""
        sizes_D = np.array(self.config.sizes or [1.0] * self.domains)
        wanted_D = sizes_D**self.config.size_power * self.density(state)
        return wanted_D / wanted_D.sum()


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Four cells."""
    return {"rule": Rehearsal(4), "batches": example_batches(generator)}
