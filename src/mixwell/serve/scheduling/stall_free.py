"""Stall-free batching: rows that answer go first, and prompts are read in pieces in what a step's budget has left.

**Equation:** a step has room for B tokens and S rows. The first S rows in the order of arrival are served. Each that
    answers takes one token: n of them. The rest of the budget, c = B - n, goes to the prompts in that order,
    each min(left_j, c), c -= min(left_j, c), until c = 0.
**Shapes:** lists of jobs; counts of tokens.
**Reference:** Agrawal et al. 2024, Sarathi-Serve (2403.02310), algorithm 3, and the authors' code.
**Differs:** memory is not part of the plan here: the server's own scheduler (`mixwell.serve.scheduler`), which plans
    the same steps, adds it. S <= B, so that what is left for prompts is never negative, as it can be in the code. The
    code's schedule that shrinks pieces as a prompt goes on is left out.
**Fails when:** prompts are shorter than the budget: then whole prompts fit, and nothing was to be gained.
**Cost:** O(S) a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.serve.scheduling.simulate import Job, Plan, traffic


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of stall-free batching."""

    budget: int = 512  # B, tokens a step
    rows: int = 64  # S, rows served at once, at most the budget

    def __post_init__(self) -> None:
        check_least(self, rows=1)
        if self.budget < self.rows:
            raise ValueError(f"budget is {self.budget} for {self.rows} rows; expected a token for each of them")


def pieces(lefts: Sequence[int], budget: int) -> list[int]:
    """What each prompt has read, in their order, of what is left of them, within the budget."""
    counts = []
    for left in lefts:
        count = min(left, budget)
        counts.append(count)
        budget -= count
    return counts


@method(title="Stall-free batching", paper="Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
        year=2024)
class StallFree:
    """Plans steps in which no row that answers waits for another's prompt."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def plan(self, jobs: Sequence[Job]) -> Plan:
        """The rows of a step and the tokens that each has read."""
        served = jobs[: self.config.rows]
        answering = [job for job in served if not job.left]
        reading = [job for job in served if job.left]
        counts = pieces([job.left for job in reading], self.config.budget - len(answering))
        parts = [(job, count) for job, count in zip(reading, counts) if count]
        return [(job, 1) for job in answering] + parts


def example(generator: torch.Generator) -> dict[str, Any]:
    """A dozen requests."""
    drawn = torch.randint(0, 1000, (1,), generator=generator)
    jobs = traffic(12, 50.0, int(drawn), prompt=(600.0, 0.8), answer=(8.0, 0.5), longest=4000)
    return {"jobs": jobs}
