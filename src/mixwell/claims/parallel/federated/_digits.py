"""What claims of federated methods share: scikit-learn's digits dealt out to clients, and small nets on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import Client, Table, Tensors, batches, by_dirichlet, clients_of
from mixwell.parallel.federated.learning import Task, descended
from mixwell.parallel.federated.simulation import Federated

TRAINING, SIDE, HIDDEN = 1200, 8, 32
RATES = (0.03, 0.1, 0.3)  # learning rates of small nets under plain descent
WIDE = (0.01, 0.03, 0.06, 0.1, 0.2, 0.5)  # where the other side has a coefficient to try, too


def digits(seed: int) -> tuple[Table, Table]:
    """1,200 rows to train on and 597 to judge by: ink [N, 64] from 0 to 1, and digits [N]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    draws = generator(seed, "digits")
    order = torch.randperm(len(found.target), generator=draws)
    ink = torch.tensor(found.data, dtype=torch.float32)
    rows = Table(ink / 16, torch.tensor(found.target))
    first, last = order.tensor_split([TRAINING])
    return rows.of(first), rows.of(last)


def turned(rows: Table, quarters: Tensor) -> Table:
    """Each image turned by its number [N] of quarters."""
    images = rows.x.view(-1, SIDE, SIDE)
    every = [images.rot90(number, (1, 2)) for number in range(4)]
    stacked = torch.stack(every)
    own = stacked[quarters, torch.arange(len(rows))]
    return Table(own.flatten(1), rows.y)


def dealt(rows: Table, clients: int, alpha: float, seed: int) -> list[Client]:
    """Clients with two rows at least, their labels as unequal as alpha says."""
    draws = generator(seed, "dealt")
    parts = by_dirichlet(rows.y, clients, alpha, draws, least=2)
    return clients_of(rows, parts)


def net(seed: int, classes: int = 10) -> dict[str, Tensor]:
    """A fresh net of one hidden layer."""
    draws = generator(seed, "net")
    found = {}
    for name, fan_out, fan_in in (("first", HIDDEN, SIDE * SIDE), ("last", classes, HIDDEN)):
        weight = torch.randn(fan_out, fan_in, generator=draws)
        found[f"{name}.weight"] = (2 / fan_in) ** 0.5 * weight
        found[f"{name}.bias"] = torch.zeros(fan_out)
    return found


def answer(tensors: Tensors, x: Tensor) -> Tensor:
    """Logits [N, C]."""
    hidden = F.linear(x, tensors["first.weight"], tensors["first.bias"])
    return F.linear(hidden.relu(), tensors["last.weight"], tensors["last.bias"])


def losses(tensors: Tensors, rows: Table) -> Tensor:
    """Cross-entropy of each row."""
    said = answer(tensors, rows.x)
    return F.cross_entropy(said, rows.y, reduction="none")


def loss(tensors: Tensors, rows: Table) -> Tensor:
    """Mean cross-entropy."""
    return losses(tensors, rows).mean()


def task(seed: int) -> Task:
    """The digits' task from a fresh net."""
    return Task(net(seed), loss, losses)


def accuracy(tensors: Tensors, rows: Table) -> float:
    """Share of rows that are right."""
    return right(answer(tensors, rows.x), rows.y)


def right(logits: Tensor, y: Tensor) -> float:
    """Share of rows whose largest logit stands at their label."""
    hit = logits.argmax(1) == y
    return float(hit.float().mean())


def trained(tensors: Tensors, rows: Table, seed: int, *, steps: int, lr: float = 0.3) -> Tensors:
    """Tensors after steps on batches of 64 of all rows."""
    draws = generator(seed, "before")
    parts = batches(rows, 64, steps, draws)
    return descended(loss, tensors, parts, lr)


def method(name: str, given: Any, **options: Any) -> Federated:
    """A method of the family by its last name."""
    entry = registry.find(f"parallel.federated.{name}")
    config = from_dict(entry.module().Config, options)
    return entry.load()(given, config)


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)
