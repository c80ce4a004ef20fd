"""A server in simulated time: requests arrive, a policy plans each step, and a roofline says how long the step takes.

A step lasts max(operations / peak, bytes / bandwidth) plus an overhead; its bytes are the weights, once, and the keys
and values of every position that a row looks back on.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from mixwell.core.rng import generator


@dataclass(frozen=True, kw_only=True)
class Device:
    """What computes. flops: operations a second; bandwidth: bytes a second; overhead: seconds a step."""

    flops: float
    bandwidth: float
    overhead: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is computed: bytes of its weights, operations of a token, bytes of keys and values of a position."""

    weight_bytes: float
    token_flops: float
    position_bytes: float


@dataclass(eq=False)
class Job:
    """A request: when it came (s), the tokens of its prompt and of its answer, and what became of it."""

    arrival: float
    prompt: int
    answer: int
    score: float = 0.0  # what is foretold of it; what that means is the policy's
    read: int = 0  # tokens of the prompt that were read
    told: list[float] = field(default_factory=list)  # when each token of the answer was there (s)

    @property
    def left(self) -> int:
        """Tokens of the prompt that are still to be read; none where it answers."""
        return self.prompt - self.read

    @property
    def kept(self) -> int:
        """Positions whose keys and values are there."""
        said = max(0, len(self.told) - 1)  # the last token is not read yet
        return self.read + said

    @property
    def over(self) -> bool:
        """Whether the whole answer was told."""
        return len(self.told) == self.answer


Plan = list[tuple[Job, int]]  # a step: jobs, and the tokens that each has read


class Policy(Protocol):
    """Plans a step from the jobs that are there, in the order in which they came."""

    def plan(self, jobs: Sequence[Job]) -> Plan:
        """Jobs and tokens; a job that answers has one token read, others up to what is left of their prompt."""


def seconds(device: Device, network: Network, plan: Plan) -> float:
    """How long a step takes."""
    tokens = sum(count for _, count in plan)
    positions = sum(job.kept + count for job, count in plan)
    computing = tokens * network.token_flops / device.flops
    moved = network.weight_bytes + positions * network.position_bytes
    return max(computing, moved / device.bandwidth) + device.overhead


def simulate(jobs: Sequence[Job], policy: Policy, device: Device, network: Network) -> float:
    """Serve all jobs; their times of tokens are written into them. Returns when the last one was over (s).

    A policy that plans nothing while jobs wait raises `RuntimeError`.
    """
    coming = deque(sorted(jobs, key=lambda job: job.arrival))
    there: list[Job] = []
    now = 0.0
    while coming or there:
        if not there:
            now = max(now, coming[0].arrival)
        while coming and coming[0].arrival <= now:
            there.append(coming.popleft())
        plan = policy.plan(there)
        if not plan:
            raise RuntimeError(f"the policy plans nothing while {len(there)} requests wait")
        now += seconds(device, network, plan)
        for job, count in plan:
            _advance(job, count, now)
        there = [job for job in there if not job.over]
    return now


def _advance(job: Job, count: int, now: float) -> None:
    """Take in that a job had tokens read; whoever has read its whole prompt has told a token."""
    job.read += min(count, job.left)
    if not job.left:
        job.told.append(now)


def waits(job: Job) -> list[float]:
    """Seconds between the tokens of an answer."""
    pairs = itertools.pairwise(job.told)
    return [later - sooner for sooner, later in pairs]


def traffic(count: int, rate: float, seed: int, *, prompt: tuple[float, float], answer: tuple[float, float],
            longest: int) -> list[Job]:
    """`count` requests, `rate` a second, that come independently; lengths are lognormal: (median, spread of the log).
    """
    draws = generator(seed, "traffic")
    gaps = torch.empty(count, dtype=torch.float64).exponential_(rate, generator=draws)
    arrivals = gaps.cumsum(0).tolist()
    prompts, answers = (_lengths(count, *law, longest, draws) for law in (prompt, answer))
    return [Job(*each) for each in zip(arrivals, prompts, answers)]


def _lengths(count: int, median: float, spread: float, longest: int, draws: torch.Generator) -> list[int]:
    normal = torch.randn(count, generator=draws, dtype=torch.float64)
    logs = math.log(median) + spread * normal
    lengths = logs.exp().round().clamp(1, longest)
    return [int(length) for length in lengths]
