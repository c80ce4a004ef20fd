"""PEER: product keys find the very experts that a search of all would find, much faster, up to a million of them.

Paper: Mixture of A Million Experts.
Tried: the sixteen best of 2^20 experts (1,024 keys a half) for sixteen tokens and one head, by product keys against
scores of all pairs; least time of three. Beside: 2^14 experts. Against it: scores that differ, or a search that is less
than ten times as fast. How quality grows with the number of experts is not tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixwell.claims._methods import build
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.core.rng import generator

DIM, K, TOKENS = 64, 16, 16


def timed(search: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """(what it found, least seconds of three)."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        found = search()
        best = min(best, time.perf_counter() - started)
    return found, best


def product_keys(layer: Any, x_TD: Tensor) -> Tensor:
    """The best scores by the two halves."""
    scores, _ = layer.memory(x_TD, K)
    return scores


def exhaustive(layer: Any, x_TD: Tensor) -> Tensor:
    """The best scores of all pairs of keys."""
    rows, columns = layer.memory.scores(x_TD)
    pairs = rows.unsqueeze(-1) + columns.unsqueeze(-2)
    return pairs.flatten(2).topk(K).values


@torch.no_grad()
def measure(seed: int, num_keys: int) -> dict[str, float]:
    """How many times as fast as the search of all, and the largest difference of the scores."""
    draws = generator(seed, "peer")
    layer = build("experts.layers.peer", DIM, generator=draws, num_keys=num_keys, k=K, heads=1)
    x_TD = torch.randn(TOKENS, DIM, generator=draws)
    ours, seconds = timed(lambda: product_keys(layer, x_TD))
    theirs, all_seconds = timed(lambda: exhaustive(layer, x_TD))
    apart = (ours - theirs).abs().max()
    times = all_seconds / seconds
    return {"times as fast": times, "scores apart": float(apart)}


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """A million experts, and 16,384 beside."""
    return {"method": measure(seed, 1024), "of 16384": measure(seed, 128)}


CLAIM = Claim(
    "Product keys search a million experts exactly and ten times as fast.",
    "times as fast as the search of all experts", quantity="times as fast", baseline=10.0, lower_is_better=False,
    provided=(Comparison(quantity="scores apart", baseline=1e-5),
              Comparison(quantity="scores apart", method="of 16384", baseline=1e-5)))
