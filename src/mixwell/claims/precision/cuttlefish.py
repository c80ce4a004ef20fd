"""Cuttlefish: ranks that the maps have settled at are as accurate as one share of the full rank at equal numbers.

Paper: Cuttlefish: Low-Rank Model Training without All the Tuning.
Tried: handwritten digits, 64-128-128-128-10, 25 steps an epoch, 30 of them; when the stable ranks of the three wide
maps have settled (a window of 8 epochs) each goes on at its own; against one share of the full rank at the same epoch,
so many numbers in sum, learning rates of both tuned alike. Beside: a dense net.
Against it: an accuracy more than a point below the dense net's, or more than half a point below the one share's.
"""

from __future__ import annotations

from typing import Any

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side, no_worse
from mixwell.claims.precision._digit_nets import WHOLE, Net, accuracy, descend, digits, net
from mixwell.claims.premise import Untestable
from mixwell.core import registry
from mixwell.precision.cuttlefish import Config, StableRanks, settled_rank

SIZES = (64, 128, 128, 128, 10)
WIDE = (0, 1, 2)  # numbers of the maps that may change
EPOCHS, STEPS, WINDOW = 30, 25, 8
RATES = (8e-3, 1e-2, 1.3e-2)
DECAY = 3e-4  # of a map's squared norm, before the switch and after
DECAYED = {**WHOLE, "decay": DECAY}


def measure(bench: Bench, seed: int, *, lr: float, ranks: str = "own") -> dict[str, float]:
    """Accuracy, and the share of the dense net's numbers that is left; ranks: own, one, or dense for no switch."""
    data = digits(seed)
    model = net(seed, SIZES, [DECAYED, DECAYED, DECAYED, WHOLE])
    watch = StableRanks(WINDOW)
    whole = model.numbers()
    switched = ranks == "dense"
    for epoch in range(EPOCHS):
        model = descend(model, data, seed + 1000 * epoch, steps=STEPS, lr=lr)
        if switched:
            continue
        weights = {str(place): model.maps[place].weight for place in WIDE}
        if watch.update(weights):
            _switch(model, ranks)
            switched = True
    if not switched:
        raise Untestable(f"the stable ranks had not settled after {EPOCHS} epochs")
    right = accuracy(model, data)
    return {"accuracy": right, "numbers": model.numbers() / whole}


def _switch(model: Net, ranks: str) -> None:
    """Put factors in the place of the wide maps."""
    weights = [model.maps[place].weight.detach() for place in WIDE]
    own = [settled_rank(weight, Config()) for weight in weights]
    if not any(own):
        raise Untestable("no map's rank had fallen when they settled")
    if ranks == "one":
        own = _one_share(weights, own)
    method: Any = registry.find("low_rank", "precision.structured")
    draws = torch.Generator()
    for place, weight, rank in zip(WIDE, weights, own):
        config = method.module().Config(rank=rank, decay=DECAY)
        made = method.load().from_dense(weight, config, draws)
        model.maps[place] = made


def _one_share(weights: list[torch.Tensor], own: list[int]) -> list[int]:
    """Ranks that are one share of the full ones, the share so large that their numbers are those of `own`."""
    numbers = 0
    for weight, rank in zip(weights, own):
        sides = sum(weight.shape)
        numbers += rank * sides if rank else weight.numel()
    full = [min(weight.shape) for weight in weights]
    most = 0
    for weight, rank in zip(weights, full):
        most += rank * sum(weight.shape)
    share = numbers / most
    return [max(1, round(share * rank)) for rank in full]


CLAIM = Claim(
    "Settled ranks are within a point of the dense net, and no worse than one share.",
    "share of test images that are right", quantity="accuracy", lower_is_better=False, baseline="dense", at_least=-0.01,
    provided=(no_worse("accuracy", 0.005, relative=False, lower_is_better=False),
              Comparison(quantity="numbers", baseline="dense", at_least=0.25)),
    sides={"method": Side(measure, {}, {"lr": RATES}),
           "baseline": Side(measure, {"ranks": "one"}, {"lr": RATES}),
           "dense": Side(measure, {"ranks": "dense"}, {"lr": RATES})})
