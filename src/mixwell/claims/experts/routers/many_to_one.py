"""Several rows for one expert: merged experts are chosen better by all rows of the router than by one row a group.

Paper: Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing Policy.
Tried: the bench's mixture of eight experts merged into four by outputs; bits per byte with the router as it was,
against top-2 by the mean row of each group. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from typing import Any

import torch

from mixwell.claims._conversions import bits, made, mixture_start
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.checkpoint import Checkpoint, channel_mixers, with_channel_mixers

CLAIM = Claim("All rows of the router choose better than one row a group.", BITS)


def one_row_each(merged: Checkpoint) -> Checkpoint:
    """The merged model with the mean row of each group in a plain router."""
    tensors = dict(merged.tensors)
    specs: list[dict[str, Any]] = []
    for layer, spec in enumerate(channel_mixers(merged.arch)):
        name = f"layers.{layer}.channel_mixer.router.weight"
        members = torch.tensor(spec["router"]["members"])
        groups = [tensors[name][members == expert] for expert in range(spec["num_experts"])]
        tensors[name] = torch.stack([rows.mean(0) for rows in groups])
        specs.append({**spec, "router": {"method": "top_k", "k": 2}})
    arch = with_channel_mixers(merged.arch, specs)
    return merged.derive(arch=arch, tensors=tensors)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte with all rows and with one a group."""
    before = mixture_start(bench, seed)
    merged = made(bench, "merge_experts", before, seed, {"keep": 4})
    return {"method": bits(bench, merged), "baseline": bits(bench, one_row_each(merged))}
