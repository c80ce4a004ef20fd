"""Online data mixing: domains as arms of a bandit whose reward is the training loss.

**Equation:** R_i <- a R_i + (1 - a) l_i / pi_i for the domains met; eps_t = min(1/D, sqrt(ln D / (D t)));
    pi_i = (1 - D eps_t) exp(eps_{t-1} R_i) / sum_j exp(eps_{t-1} R_j) + eps_t.
**Shapes:** losses [T]; R, pi [D].
**Reference:** Albalak et al. 2023 (2312.02406), algorithm 1.
**Differs:** none in the paper's form. The released code is another method: it rewards exp(loss), never divides by pi,
    and where a batch holds several domains its weights are linear in R.
**Fails when:** a domain cannot be learned: its loss stays highest and draws weight (of losses 1.5 to 3.5 and a noise
    domain at 6, the noise gets 0.24 after 100 steps, 0.18 after 20,000; the released code gives it 0.5 to 0.9). As eps
    shrinks the weights go back to even.
**Cost:** O(T + D) a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.method import method
from mixwell.data.rule import Batch, Rule, State, counts, example_batches, means, softmax


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of online data mixing; `ValueError` for a value out of range."""

    memory: float = 0.9  # a: share of the old reward that is kept, at least 0 and below 1
    warmup: int = 0  # steps with even weights, in which rewards are gathered

    def __post_init__(self) -> None:
        if not 0 <= self.memory < 1:
            raise ValueError(f"memory is {self.memory}; expected at least 0 and below 1")
        if self.warmup < 0:
            raise ValueError(f"warmup is {self.warmup}; expected 0 or more")


@method(title="Online data mixing", year=2023)
class OnlineMixing(Rule):
    """Exp3 with a moving average of rewards."""

    def default(self) -> Config:
        """The paper's memory, no warmup."""
        return Config()

    def start(self) -> State:
        """No rewards, even weights."""
        even_D = np.full(self.domains, 1 / self.domains)
        none_D = np.zeros(self.domains)
        start = np.array(0.0)
        return {"reward": none_D, "weights": even_D, "step": start}

    def step(self, state: State, batch: Batch) -> State:
        """Rewards of the domains met, then the weights."""
        before_D, drawn_D = state["reward"], state["weights"]
        loss_D = means(batch.loss_T, batch.domain_T, np.zeros(self.domains))
        keep = self.config.memory
        gain_D = loss_D / drawn_D
        fresh_D = keep * before_D + (1 - keep) * gain_D
        met_D = counts(batch.domain_T, self.domains) > 0
        reward_D = np.where(met_D, fresh_D, before_D)
        step = state["step"] + 1
        weight_D = drawn_D
        if step > self.config.warmup:
            weight_D = chosen(reward_D, float(step))
        return {"reward": reward_D, "weights": weight_D, "step": step}

    def weights(self, state: State) -> np.ndarray:
        """pi: the shares that the next batch is drawn by."""
        return state["weights"]


def exploring(step: float, domains: int) -> float:
    """eps_t; the most there is before the first step."""
    even = 1 / domains
    if step < 1:
        return even
    wide = math.log(domains) / (domains * step)
    return min(even, math.sqrt(wide))


def chosen(reward_D: np.ndarray, step: float) -> np.ndarray:
    """pi [D] after step t."""
    domains = len(reward_D)
    least = exploring(step, domains)
    before = exploring(step - 1, domains)
    sharp_D = softmax(before * reward_D)
    free = 1 - domains * least
    return free * sharp_D + least


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Four domains."""
    return {"rule": OnlineMixing(4), "batches": example_batches(generator)}
