"""Stall-free batching: more requests a second while answers flow evenly.

Paper: Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve.
Tried: in simulated time, a network of 7 billion parameters on a device of 300 TFLOP/s and 2 TB/s; 200 requests that
come independently, prompts of 1,700 tokens in the median and answers of 200. The highest rate at which 99 of 100 tokens
come within five times a lone decoding step (35 ms) and half of the requests have their first token within 2 s. Against
whole prompts first, the budgets of both tuned. Against it: a rate that is not half as high again. Whether the roofline
holds for a machine is not tried.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.serve.scheduling.prompts_first import Config as FirstConfig
from mixwell.serve.scheduling.prompts_first import PromptsFirst
from mixwell.serve.scheduling.simulate import Device, Job, Network, Policy, simulate, traffic, waits
from mixwell.serve.scheduling.stall_free import Config, StallFree

DEVICE = Device(flops=3e14, bandwidth=2e12)
NETWORK = Network(weight_bytes=14e9, token_flops=14e9, position_bytes=524288.0)
STRICT, DELAY = 5 * 14e9 / 2e12, 2.0  # seconds between tokens, and to the first one
COUNT, LOW, HIGH, HALVINGS = 200, 0.05, 12.8, 7  # requests; rates a second between which is searched


def policy_of(kind: str, budget: int) -> Policy:
    """A policy with room for 128 rows."""
    if kind == "stall free":
        return StallFree(Config(budget=budget, rows=128))
    return PromptsFirst(FirstConfig(budget=budget, rows=128))


def served(seed: int, rate: float, policy: Policy) -> list[Job]:
    """The requests with the times of their tokens."""
    jobs = traffic(COUNT, rate, seed, prompt=(1700.0, 0.84), answer=(200.0, 0.6), longest=8000)
    simulate(jobs, policy, DEVICE, NETWORK)
    return jobs


def even(jobs: list[Job]) -> bool:
    """Whether tokens came as they should."""
    gaps = [wait for job in jobs for wait in waits(job)]
    delays = [job.told[0] - job.arrival for job in jobs]
    slow, delay = np.quantile(gaps, 0.99), np.median(delays)
    return bool(slow < STRICT and delay < DELAY)


def highest_rate(bench: Bench, seed: int, *, kind: str, budget: int) -> float:
    """Requests a second, to some 4 %; the low end where no rate will do."""
    low, high = LOW, HIGH
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        if even(served(seed, middle, policy_of(kind, budget))):
            low = middle
        else:
            high = middle
    return low


CLAIM = Claim(
    "Stall-free batching serves half as many requests again at evenly flowing answers.", "requests a second",
    lower_is_better=False, at_least=0.5, relative=True,
    sides={"method": Side(highest_rate, {"kind": "stall free"}, {"budget": (256, 512, 1024, 2048)}),
           "baseline": Side(highest_rate, {"kind": "prompts first"}, {"budget": (1024, 2048, 4096, 8192)})})
