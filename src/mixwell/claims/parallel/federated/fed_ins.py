"""FedIns: a pool of scales and shifts chosen image by image serves mixed styles better than one scale and shift.

Paper: Towards Instance-adaptive Inference for Federated Learning.
Tried: six clients, each with digits of four styles (upright, turned, inverted, washed out), dealt out by
Dirichlet(0.5); beside a frozen net trained on upright ones, 12 rounds; accuracy on held-out digits of all styles.
Against it: an accuracy that is no higher than with a pool of one, which is averaging of one scale and shift. Bytes are
not compared: a pool is not small beside so small a net.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.parallel.federated._digits import HIDDEN, dealt, digits, drawn, net, right, trained, turned
from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import Table, Tensors
from mixwell.parallel.federated.fed_ins import Backbone, Config, FedIns
from mixwell.parallel.federated.simulation import Setting, simulate

STYLES = 4


class Frozen(nn.Module):
    """A linear map that is not trained."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """W x + b."""
        return F.linear(x, self.weight, self.bias)


class Features(nn.Module):
    """The first layer of a trained net, and a random layer behind it, as modules."""

    def __init__(self, tensors: Tensors, draws: torch.Generator) -> None:
        super().__init__()
        self.first = Frozen(tensors["first.weight"], tensors["first.bias"])
        weight = 2**0.5 * drawn(draws, HIDDEN, HIDDEN)
        self.second = Frozen(weight, torch.zeros(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 32]."""
        hidden = self.first(x).relu()
        return self.second(hidden).relu()


def styled(rows: Table, *keys: int | str) -> Table:
    """Rows in one of four styles each."""
    draws = generator(*keys)
    count = len(rows)
    style_N1 = torch.randint(STYLES, (count, 1), generator=draws)
    once = style_N1.squeeze(1) == 1
    ink = turned(rows, once.long()).x
    inverted = 1 - ink
    washed = 0.4 * ink + 0.3
    x = torch.where(style_N1 == 2, inverted, ink)
    x = torch.where(style_N1 == 3, washed, x)
    return Table(x, rows.y)


def measure(bench: Bench, seed: int, **options: Any) -> float:
    """Accuracy on all styles."""
    train, test = digits(seed)
    before = trained(net(seed), train, seed, steps=150)
    features = Features(before, generator(seed, "frozen"))
    backbone = Backbone(features, ("first", "second"), 10)
    own = FedIns(backbone, Config(steps=8, **options))
    mixed = styled(train, seed, "train")
    clients = dealt(mixed, 6, 0.5, seed)
    setting = Setting(rounds=12, seed=seed)
    state = simulate(own, clients, setting).state
    rows = styled(test, seed, "test")
    with torch.no_grad():
        said, _ = own.logits(state, rows.x)
    return right(said, rows.y)


RATES = {"lr": (0.3, 1.0, 2.0)}
CLAIM = Claim(
    "A pool chosen image by image serves mixed styles better than one scale and shift.",
    "accuracy on digits of four styles", lower_is_better=False,
    sides={"method": Side(measure, {"pool": 8, "top_k": 2}, RATES),
           "baseline": Side(measure, {"pool": 1, "top_k": 1}, RATES)})
