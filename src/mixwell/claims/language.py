"""Small language models for claims: their bits per byte, and what their layers saw and chose on held-out text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from mixwell.claims import trunk
from mixwell.claims._methods import call
from mixwell.claims.bench import Bench, Trained
from mixwell.claims.grids import finer, variants
from mixwell.claims.trunk import Part
from mixwell.core.routing import Context

SWITCH: Mapping[str, Any] = {"router": {"method": "top_k", "k": 1}, "balance": {"switch": 0.01}}
RATES = (2e-3, 4e-3, 8e-3)  # learning rates that are tried
TOKENS = 300_000  # the bench's default, so that baselines are shared
DEEP: Mapping[str, Any] = {"num_layers": 4}
BALANCED: Mapping[str, Any] = {"lr": RATES, "balance": variants({}, switch=(0.003, 0.01, 0.03))}  # nine settings
FINE: Mapping[str, Any] = {"lr": finer(RATES, 9)}  # as many, where there is nothing else to tune
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Seen:
    """What one layer's channel mixer was given and gave."""

    hidden_TD: Tensor
    context: Context
    mixed: Any
    mixer: Any


def quality(bench: Bench, seed: int, **options: Any) -> float:
    """Bits per byte of the model that `from_trunk` trains with these options."""
    return from_trunk(bench, seed, **options).bits_per_byte


def from_trunk(bench: Bench, seed: int, *, mixer: Mapping[str, Any] | None = None, tokens: int = TOKENS,
               lr: float = 4e-3, swapped: Part | None = "channel_mixer", balance: Mapping[str, Any] | None = None,
               **changes: Any) -> Trained:
    """One trained model: the bench's decoder with this channel mixer and these changes.

    It starts from the trunk with the mixers of the part `swapped`, or fresh. `balance` replaces the mixer's own.
    """
    own = {} if balance is None else {"balance": balance}
    arch = bench.arch({**(mixer or {}), **own}, **changes)
    return bench.train(arch, seed, tokens=tokens, lr=lr, swapped=swapped)


def block(hidden_dim: int) -> dict[str, Any]:
    """A dense block of this width in the place of a mixture."""
    return {"method": "experts.layers.swiglu", "hidden_dim": hidden_dim}


def dense(bench: Bench, hidden_dim: int) -> dict[str, Any]:
    """The bench's decoder with a dense block of this width."""
    return bench.arch(block(hidden_dim))


def held_out(bench: Bench, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """(`rows` windows of each domain's held-out text [B, width], the domain of each [B])."""
    return trunk.windows(bench.data, "held", rows, width)


@torch.no_grad()
def probe(bench: Bench, model: Any, rows: int = 32, width: int = 64) -> list[Seen]:
    """One entry a layer, from `rows` windows of each domain's held-out text."""
    windows, labels = held_out(bench, rows, width)
    found: list[Seen] = []

    def keep(mixer: Any, given: tuple[Tensor, Context], mixed: Any) -> None:
        found.append(Seen(*given, mixed, mixer))

    hooks = [layer.channel_mixer.register_forward_hook(keep) for layer in model.layers]
    try:
        model.eval()(windows, labels_B=labels)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def limited(rule: str) -> dict[str, Any]:
    """Switch routing with capacity factor 1 and an overflow rule."""
    return {**SWITCH, "capacity_factor": 1.0, "overflow": {"method": rule}}


def mean_over(seen: Sequence[T], measure: Callable[[T], float]) -> float:
    """The mean over layers of what `measure` says of each."""
    values = [measure(layer) for layer in seen]
    return statistics.fmean(values)


def log_scatter_ratio(bench: Bench, model: Any) -> float:
    """Logarithm of the hidden states' scatter within experts over that between them, mean over layers.

    Small where representations collapse.
    """
    found = []
    for seen in probe(bench, model):
        scatter = call("experts.analysis.collapse", seen.mixed.routing, seen.hidden_TD, context=seen.context)
        found.append(math.log(scatter["scatter_ratio"]))
    return statistics.fmean(found)
