"""Offloaded experts: those used last are asked for again more often than those used most.

Paper: Fast Inference of Mixture-of-Experts Language Models with Offloading.
Tried: a mixture of eight experts, two a token, after 150,000 tokens; the experts of each layer over held-out text, read
token by token, four of eight kept in memory by last use. Share of the experts asked for that were not there. Against
the four of each layer that are used most over all of it, known beforehand. Beside: four by chance. Against it: no
fewer reads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from statistics import fmean

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.language import SWITCH, from_trunk, probe
from mixwell.serve.offload import Expert, Residents

EXPERTS, KEPT, TOKENS = 8, 4, 150_000
MIXER = {"method": "experts.layers.moe", **SWITCH, "num_experts": EXPERTS, "router": {"method": "top_k", "k": 2}}


def nothing(layer: int, expert: int) -> Expert:
    """An expert that is only counted."""
    return torch.empty(0), torch.empty(0)


def last_used(indices_TK: Tensor) -> float:
    """Share of reads where the experts used last are kept."""
    residents = Residents(0, nothing, KEPT, ThreadPoolExecutor(1))
    asked = indices_TK.flatten().tolist()
    for expert in asked:
        residents.get(expert)
    return residents.counts["misses"] / len(asked)


def most_used(indices_TK: Tensor) -> float:
    """Share of reads where the experts used most are kept."""
    counts_E = torch.bincount(indices_TK.flatten(), minlength=EXPERTS)
    kept = counts_E.topk(KEPT).values.sum()
    return 1 - float(kept / counts_E.sum())


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Means over layers."""
    model = from_trunk(bench, seed, mixer=MIXER, tokens=TOKENS).model
    routings = [seen.mixed.routing.indices_TK for seen in probe(bench, model)]
    return {"method": fmean(map(last_used, routings)), "baseline": fmean(map(most_used, routings)),
            "by chance": 1 - KEPT / EXPERTS}


CLAIM = Claim("Experts used last are asked for again more often than those used most.", "share of experts read",
              at_least=0.0)
