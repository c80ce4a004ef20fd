"""UltraMem: choosing rows and columns by the core's leading singular vectors finds almost all of the best slots.

Paper: Ultra-Sparse Memory Network.
Tried: regression in sixteen clusters, a grid of 64 by 64 slots of which a token keeps sixteen, rank 2, 300 steps with
the paper's core loss at 0.001, the learning rate chosen by the error; share of the sixteen best slots of an exhaustive
search that are kept on fresh tokens. Beside: a core loss of 0.1 without a margin. Against it: a share of 95 % or less,
or an error more than 5 % higher than without the core loss. Quality at equal memory traffic is not tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixwell.claims._methods import build
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.experts._synthetic import DIM, SIZE, Clusters, error, fit, known
from mixwell.claims.grids import RATES
from mixwell.claims.starts import level
from mixwell.core.rng import generator

OPTIONS: dict[str, Any] = {"num_keys": 64, "k": 16, "key_dim": 16, "value_dim": 16}


def best_slots(memory: Any, x_TD: Tensor) -> Tensor:
    """Whether a slot is among the sixteen best of an exhaustive search [T, slots]."""
    rows, columns = memory(x_TD)
    core = memory.cores.sum(0)
    products = torch.einsum("tir,rs,tjs->tij", rows, core, columns)
    every = products.flatten(1)
    best = every.topk(16).indices
    nowhere = torch.zeros_like(every, dtype=torch.bool)
    return nowhere.scatter(1, best, True)


def trained(draw: Clusters, seed: int, lr: float, steps: int, rule: Mapping[str, float]) -> Any:
    """A memory of the usual start, trained with these options of its core loss."""
    weights = generator(seed, "layer")
    layer = build("experts.layers.ultra_sparse_memory", DIM, generator=weights, **OPTIONS, **rule)
    first = draw(512, generator(seed, "start"))
    given = (first.x_TD, known(first))
    level(layer, given, SIZE)
    return fit(layer, draw, seed, steps=steps, lr=lr)


@torch.no_grad()
def kept_of_best(layer: Any, x_TD: Tensor) -> float:
    """Share of the best slots among those that a layer keeps."""
    best = best_slots(layer.memory, x_TD)
    _, kept = layer.retrieve(x_TD)
    found = best.gather(1, kept)
    return float(found.float().mean())


def overlap(bench: Bench, seed: int, *, lr: float, steps: int = 300, **rule: float) -> dict[str, float]:
    """Share of the best slots that are kept after training, and the error."""
    draw = Clusters(seed)
    layer = trained(draw, seed, lr, steps, rule)
    fresh = draw(512, generator(seed, "test"))
    kept = kept_of_best(layer, fresh.x_TD)
    missed = error(layer, draw, seed)
    return {"kept": kept, "error": missed}


def side(**rule: float) -> Side:
    """Memories with these options of the core loss."""
    return Side(overlap, rule, {"lr": RATES})


CLAIM = Claim(
    "Rank-one pre-selection finds almost all of the best slots.", "share of the best sixteen slots that are kept",
    quantity="kept", baseline=0.95, lower_is_better=False, tuned_by="error", provided=(no_worse("error", 0.05),),
    sides={"method": side(core_loss=0.001), "baseline": side(core_loss=0.0),
           "without a margin": side(core_loss=0.1, margin=0.0)})
