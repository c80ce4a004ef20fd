"""Whole prompts first: whoever came is read at once, while rows that answer wait.

**Equation:** the first S rows in the order of arrival are served. Where prompts among them are unread, the step reads
    whole prompts in that order while their sum is at most B (one at least, however long); else every row has its next
    token.
**Shapes:** lists of jobs; counts of tokens.
**Reference:** textbook; what serving engines did before prompts were read in pieces.
**Differs:** none.
**Fails when:** prompts are long or many: answers stall for whole prompts.
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
    """Options of reading prompts first."""

    budget: int = 4096  # B, tokens of prompts a step, more where one prompt alone has more
    rows: int = 64  # S, rows served at once

    def __post_init__(self) -> None:
        check_least(self, budget=1, rows=1)


@method(title="Whole prompts first", year=2023)
class PromptsFirst:
    """Plans steps of whole prompts, and of answers where no prompt is unread."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def plan(self, jobs: Sequence[Job]) -> Plan:
        """The rows of a step and the tokens that each has read."""
        served = jobs[: self.config.rows]
        reading = [job for job in served if job.left]
        if not reading:
            return [(job, 1) for job in served]
        plan, room = [(reading[0], reading[0].left)], self.config.budget - reading[0].left
        for job in reading[1:]:
            if job.left > room:
                break
            plan.append((job, job.left))
            room -= job.left
        return plan


def example(generator: torch.Generator) -> dict[str, Any]:
    """A dozen requests."""
    drawn = torch.randint(0, 1000, (1,), generator=generator)
    jobs = traffic(12, 50.0, int(drawn), prompt=(600.0, 0.8), answer=(8.0, 0.5), longest=4000)
    return {"jobs": jobs}
