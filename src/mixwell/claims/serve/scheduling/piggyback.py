"""Piggybacked decodes: the same requests done sooner.

Paper: SARATHI: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills.
Tried: in simulated time, a network of 13 billion parameters on a device of 155 TFLOP/s and 0.77 TB/s; 80 requests that
are there from the beginning, prompts of 980 tokens, answers of 20 to 200, 18 rows at once. Against reading whole
prompts before answers go on, with as many rows; pieces and budgets tuned. Against it: less than a tenth of the time
saved. Bubbles of pipelines are not tried.
"""

from __future__ import annotations

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator
from mixwell.serve.scheduling.piggyback import Config, Piggyback
from mixwell.serve.scheduling.prompts_first import Config as FirstConfig
from mixwell.serve.scheduling.prompts_first import PromptsFirst
from mixwell.serve.scheduling.simulate import Device, Job, Network, simulate

DEVICE = Device(flops=1.55e14, bandwidth=7.7e11)
NETWORK = Network(weight_bytes=26e9, token_flops=26e9, position_bytes=819200.0)
ROWS, COUNT, PROMPT = 18, 80, 980


def seconds(bench: Bench, seed: int, *, kind: str, size: int) -> float:
    """Until all requests are done."""
    draws = generator(seed, "piggyback")
    answers = torch.randint(20, 201, (COUNT,), generator=draws)
    jobs = [Job(0.0, PROMPT, answer) for answer in answers.tolist()]
    if kind == "piggyback":
        return simulate(jobs, Piggyback(Config(chunk=size, rows=ROWS)), DEVICE, NETWORK)
    return simulate(jobs, PromptsFirst(FirstConfig(budget=size, rows=ROWS)), DEVICE, NETWORK)


CLAIM = Claim(
    "Decodes that ride along with pieces of prompts take a tenth of the time off.", "seconds for 80 requests",
    at_least=0.1, relative=True,
    sides={"method": Side(seconds, {"kind": "piggyback"}, {"size": (128, 256, 384, 512)}),
           "baseline": Side(seconds, {"kind": "prompts first"}, {"size": (980, 1960, 3920, 7840)})})
