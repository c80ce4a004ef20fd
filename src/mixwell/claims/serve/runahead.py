"""Key-value runahead: the first token sooner than where all workers gather all keys and values.

Paper: KV-Runahead: Scalable Causal LLM Inference by Parallel Key-Value Cache Generation.
Tried: by the recursion of times, 32 layers, prompts of 1,000 to 16,000 tokens, 2 to 8 processes and links at which a
position's keys and values take from a hundredth to a half of a row's work, all drawn anew for each seed, twenty draws a
seed; pieces by the search. Against even pieces whose keys and values every process gathers from all before it attends
under the causal mask. Beside: the same where the masked part is computed, too, and runahead with even pieces.
Against it: less than a tenth of the time saved, in the mean over draws.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.rng import generator
from mixwell.serve.runahead import Config, even, finish, runahead

DRAWS = 20


def gathered(length: int, config: Config, *, skips: bool) -> float:
    """Seconds until all are done where everybody gathers all keys and values in each layer."""
    bounds = even(length, config.processes)
    most = max(last - first for first, last in pairwise(bounds))
    sent = config.position_time * (length - most)
    attention = []
    for first, last in pairwise(bounds):
        seen = (first + last + 1) / 2 if skips else length
        attention.append(config.pair_time * (last - first) * seen)
    return config.layers * (config.row_time * most + sent + max(attention))


def drawn(draws: torch.Generator) -> tuple[int, Config]:
    """A prompt and a chain."""
    share_3 = torch.rand(3, generator=draws, dtype=torch.float64).tolist()
    length = round(1000 * 16 ** share_3[0])
    processes = 2 + int(7 * share_3[1])
    link = 0.01 * 50 ** share_3[2]
    return length, Config(processes=processes, position_time=link)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Mean over draws of the log of the time, a row's work in a layer the unit."""
    draws = generator(seed, "runahead")
    found: dict[str, list[float]] = {"method": [], "baseline": [], "even pieces": [], "masked part computed": []}
    for _ in range(DRAWS):
        length, config = drawn(draws)
        times = (finish(runahead(length, config), config), gathered(length, config, skips=True),
                 finish(even(length, config.processes), config), gathered(length, config, skips=False))
        for name, time in zip(found, times):
            found[name].append(math.log(time))
    return {name: fmean(logs) for name, logs in found.items()}


CLAIM = Claim("A chain of workers tells the first token a tenth sooner than gathering.", "mean log of the time",
              at_least=-math.log(0.9))
