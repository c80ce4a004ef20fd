"""Maestro: cut to a small rank, ordered factors keep more than a trained net's singular parts do.

Paper: Maestro: Uncovering Low-Rank Structures via Trainable Decomposition.
Tried: handwritten digits, 64-128-128-10, both sides 500 steps, a full pass and a cut one for Maestro, a full one for
the other; the two wide maps cut to a tenth of their rank, nothing trained afterwards; learning rates tuned alike, the
group lasso's coefficient beside Maestro's, more rates on the other side. Against it: an accuracy that is no higher, or
at full rank one that is more than two points lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.grids import finer
from mixwell.claims.precision._digit_nets import WHOLE, Net, accuracy, descend, digits, net
from mixwell.core import registry
from mixwell.precision.structured.maestro import distilled_loss, drawn_pair

SIZES = (64, 128, 128, 10)
CUT = 0.1
STEPS = 500
RATES = (1e-3, 3e-3, 1e-2)
PENALTIES = (0.0, 1e-5, 1e-4)


def ordered(bench: Bench, seed: int, *, lr: float, penalty: float) -> dict[str, float]:
    """Accuracy of Maestro's net, cut and whole."""
    data = digits(seed)
    spec: Mapping[str, Any] = {"method": "maestro", "sampled": False, "penalty": penalty}
    model = net(seed, SIZES, spec)
    ranks = [one.rank for one in model.maps]

    def loss(x: Tensor, y: Tensor) -> Tensor:
        pair = drawn_pair(model.step, sum(ranks), 0)
        which = 0
        while pair >= ranks[which]:
            pair -= ranks[which]
            which += 1
        return distilled_loss(lambda: model(x), list(model.maps), (which, pair + 1), y)

    trained = descend(model, data, seed, steps=STEPS, lr=lr, extra=loss)
    whole = accuracy(trained, data)
    for one in trained.maps[:2]:
        one.limit = _kept(one.rank)
    return {"cut": accuracy(trained, data), "whole": whole}


def usual(bench: Bench, seed: int, *, lr: float) -> dict[str, float]:
    """Accuracy of a dense net, its maps cut to their leading singular parts, and whole."""
    data = digits(seed)
    model = net(seed, SIZES, WHOLE)
    trained = descend(model, data, seed, steps=STEPS, lr=lr)
    whole = accuracy(trained, data)
    _cut(trained)
    return {"cut": accuracy(trained, data), "whole": whole}


def _kept(rank: int) -> int:
    share = CUT * rank
    return max(1, round(share))


@torch.no_grad()
def _cut(model: Net) -> None:
    low_rank = registry.find("low_rank", "precision.structured")
    draws = torch.Generator()
    for one in list(model.maps)[:2]:
        smaller = min(one.weight.shape)
        rank = _kept(smaller)
        config = low_rank.module().Config(rank=rank)
        cut = low_rank.load().from_dense(one.weight, config, draws)
        one.weight.copy_(cut.dense())


CLAIM = Claim(
    "Ordered factors cut to a tenth keep more accuracy than singular parts.", "share of test images that are right",
    quantity="cut", lower_is_better=False, provided=(no_worse("whole", 0.02, relative=False, lower_is_better=False),),
    sides={"method": Side(ordered, {}, {"lr": RATES, "penalty": PENALTIES}),
           "baseline": Side(usual, {}, {"lr": finer(RATES, 9)})})
