"""FedIns: a pool of scales and shifts chosen image by image serves mixed styles better than one scale and shift.

Paper: Towards Instance-adaptive Inference for Federated Learning.
Tried: eight clients, each with digits of four styles (upright, turned, inverted, washed out), dealt out by
Dirichlet(0.5); beside a frozen net trained on upright ones, 25 rounds; accuracy on held-out digits of all styles.
Against it: an accuracy that is no higher than with a pool of one, which is averaging of one scale and shift. Beside: a
head alone, tuned likewise. Bytes are not compared: a pool is not small beside so small a net.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.parallel.federated._digits import HIDDEN, dealt, digits, net, right, trained, turned
from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import Table, Tensors
from mixwell.parallel.federated.fed_ins import Backbone, Config, FedIns
from mixwell.parallel.federated.simulation import Setting, simulate

STYLES = 4


class Frozen(nn.Module):
    """The first layer of a trained net, and a random layer behind it, as modules."""

    def __init__(self, tensors: Tensors, draws: torch.Generator) -> None:
        super().__init__()
        weight = tensors["first.weight"]
        outputs, inputs = weight.shape
        spread = (2 / HIDDEN) ** 0.5
        drawn = torch.randn(HIDDEN, HIDDEN, generator=draws)
        self.first = nn.Linear(inputs, outputs, device="meta")
        self.second = nn.Linear(HIDDEN, HIDDEN, bias=False, device="meta")
        self.first.weight = nn.Parameter(weight, requires_grad=False)
        self.first.bias = nn.Parameter(tensors["first.bias"], requires_grad=False)
        self.second.weight = nn.Parameter(spread * drawn, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 32]."""
        hidden = self.first(x).relu()
        return self.second(hidden).relu()


def styled(rows: Table, *keys: int | str) -> Table:
    """Rows in one of four styles each."""
    draws = generator(*keys)
    style = torch.randint(STYLES, (len(rows),), generator=draws)
    quarters = (style == 1).long()
    ink = turned(rows, quarters).x
    inverted, washed = 1 - ink, 0.4 * ink + 0.3
    x = torch.where(style[:, None] == 2, inverted, ink)
    x = torch.where(style[:, None] == 3, washed, x)
    return Table(x, rows.y)


def measure(bench: Bench, seed: int, *, points: tuple[str, ...] = ("first", "second"), **options: Any) -> float:
    """Accuracy on all styles."""
    train, test = digits(seed)
    before = trained(net(seed), train, seed, steps=150)
    frozen = Frozen(before, generator(seed, "frozen"))
    config = Config(steps=10, **options)
    own = FedIns(Backbone(frozen, points, 10), config)
    clients = dealt(styled(train, seed, "train"), 8, 0.5, seed)
    state = simulate(own, clients, Setting(rounds=25, seed=seed)).state
    rows = styled(test, seed, "test")
    with torch.no_grad():
        said, _ = own.logits(state, rows.x)
    return right(said, rows.y)


FEW = {"lr": (0.1, 0.3, 0.6, 1.0)}
CLAIM = Claim(
    "A pool chosen image by image serves mixed styles better than one scale and shift.",
    "accuracy on digits of four styles", lower_is_better=False,
    sides={"method": Side(measure, {"top_k": 2}, {"lr": (0.3, 1.0, 2.0, 4.0), "pool": (8,)}),
           "baseline": Side(measure, {"pool": 1, "top_k": 1}, FEW),
           "head alone": Side(measure, {"pool": 1, "top_k": 1, "points": ()}, FEW)})
