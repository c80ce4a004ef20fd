"""Piggybacked decodes: each step reads one piece of one prompt, and rows that answer ride along.

**Equation:** B rows, pieces of C tokens. A step is one piece, min(C, left), of the first prompt that is not read, and
    one token of each of at most B - 1 rows that answer. A prompt of P tokens takes ceil(P / C) steps; where requests
    have P tokens of prompt and D of answer, P / D = C / (B - 1) fills every place.
**Shapes:** lists of jobs; counts of tokens.
**Reference:** Agrawal et al. 2023, SARATHI (2308.16369), section 4.
**Differs:** the order among rows is that of arrival. The rule that piece and decodes together be a multiple of a
    product's tile is left to whoever chooses C.
**Fails when:** prompts are short beside C: the piece is small and the step as dear as one of decodes alone.
**Cost:** O(B) a step.
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
    """Options of piggybacking."""

    chunk: int = 256  # C, tokens of a prompt's piece
    rows: int = 18  # B, rows served at once

    def __post_init__(self) -> None:
        check_least(self, chunk=1, rows=2)


def balanced_chunk(prompt: float, answer: float, rows: int) -> float:
    """C at which requests of so many tokens of prompt and of answer leave no place of a step empty."""
    return (rows - 1) * prompt / answer


@method(title="Piggybacked decodes",
        paper="SARATHI: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills", year=2023)
class Piggyback:
    """Plans steps of one piece of one prompt and of decodes beside it."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def plan(self, jobs: Sequence[Job]) -> Plan:
        """The rows of a step and the tokens that each has read."""
        served = jobs[: self.config.rows]
        reading = next((job for job in served if job.left), None)
        answering = [job for job in served if not job.left]
        plan = [(job, 1) for job in answering]
        if reading is not None:
            piece = min(self.config.chunk, reading.left)
            plan = [(reading, piece), *plan[: self.config.rows - 1]]
        return plan


def example(generator: torch.Generator) -> dict[str, Any]:
    """A dozen requests."""
    drawn = torch.randint(0, 1000, (1,), generator=generator)
    jobs = traffic(12, 50.0, int(drawn), prompt=(600.0, 0.8), answer=(8.0, 0.5), longest=4000)
    return {"jobs": jobs}
