"""Small language models for claims: their bits per byte, and what their layers saw and chose on held-out text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.core import registry
from mixwell.core.routing import Context

SWITCH: Mapping[str, Any] = {"router": {"method": "top_k", "k": 1}, "balance": {"switch": 0.01}}
TOKENS = 300_000  # the bench's default, so that baselines are shared
DEEP: Mapping[str, Any] = {"num_layers": 4}


@dataclass(frozen=True, eq=False)
class Seen:
    """What one layer's channel mixer was given and gave."""

    hidden_TD: Tensor
    context: Context
    mixed: Any
    mixer: Any


def dense(bench: Bench, hidden_dim: int) -> dict[str, Any]:
    """The bench's decoder with a dense block of this width in the place of the mixture."""
    return bench.arch({"method": "experts.layers.swiglu", "hidden_dim": hidden_dim})


def bits(bench: Bench, arch: Mapping[str, Any], tokens: int = TOKENS) -> list[float]:
    """Bits per byte of one model a seed."""
    return [bench.train(arch, seed, tokens=tokens).bits_per_byte for seed in bench.seeds]


@torch.no_grad()
def probe(bench: Bench, model: Any, rows: int = 32, width: int = 64) -> list[Seen]:
    """One entry a layer, from `rows` windows of each domain's held-out text."""
    windows, labels = [], []
    for label, domain in enumerate(bench.data.domains):
        ids = np.asarray(bench.data.tokens(domain, "held")[: rows * width], dtype=np.int64)
        part = torch.from_numpy(ids[: len(ids) // width * width]).view(-1, width)
        windows.append(part)
        labels.append(torch.full((len(part),), label))
    found: list[Seen] = []
    hooks = [layer.channel_mixer.register_forward_hook(
        lambda mixer, given, mixed: found.append(Seen(given[0], given[1], mixed, mixer))) for layer in model.layers]
    try:
        model.eval()(torch.cat(windows), labels_B=torch.cat(labels))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def limited(bench: Bench, rule: str) -> dict[str, Any]:
    """The bench's decoder with Switch routing, capacity factor 1 and an overflow rule."""
    return bench.arch({**SWITCH, "capacity_factor": 1.0, "overflow": {"method": rule}})


def log_scatter_ratio(bench: Bench, model: Any) -> float:
    """Logarithm of the hidden states' scatter within experts over that between them, mean over layers.

    Small where representations collapse.
    """
    collapse = registry.find("experts.analysis.collapse")
    found = (collapse.load()(seen.mixed.routing, seen.hidden_TD, collapse.module().Config(), seen.context)
             for seen in probe(bench, model))
    return statistics.fmean(math.log(one["scatter_ratio"]) for one in found)
