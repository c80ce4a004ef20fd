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


def digits(seed: int) -> tuple[Table, Table]:
    """1,200 rows to train on and 597 to judge by: ink [N, 64] from 0 to 1, and digits [N]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    ink = torch.tensor(found.data, dtype=torch.float32)
    labels = torch.tensor(found.target)
    rows = Table(ink / 16, labels)
    draws = generator(seed, "digits")
    order = torch.randperm(len(rows), generator=draws)
    first, last = order.tensor_split([TRAINING])
    return rows.of(first), rows.of(last)


def turned(rows: Table, quarters: Tensor) -> Table:
    """Each image turned by its number [N] of quarters."""
    images = rows.x.view(-1, SIDE, SIDE)
    every = [images.rot90(number, (1, 2)) for number in range(4)]
    stacked = torch.stack(every)
    places = torch.arange(len(rows))
    own = stacked[quarters, places]
    return Table(own.flatten(1), rows.y)


def quarter(rows: Table) -> Table:
    """All of them turned by one quarter."""
    ones = torch.ones_like(rows.y)
    return turned(rows, ones)


def mixed(rows: Table, share: Tensor, *keys: int | str) -> Table:
    """Rows turned by 0, 1, ... quarters in such shares, as drawn by keys."""
    draws = generator(*keys)
    quarters = torch.multinomial(share, len(rows), replacement=True, generator=draws)
    return turned(rows, quarters)


def shares(clients: int, kinds: int, alpha: float, *keys: int | str) -> Tensor:
    """Each client's shares [C, K] of kinds, from Dirichlet(alpha)."""
    draws = generator(*keys)
    alphas = torch.full((clients, kinds), alpha, dtype=torch.float64)
    drawn = torch._standard_gamma(alphas, generator=draws)
    drawn = drawn.clamp_min(1e-6)
    total = drawn.sum(1, keepdim=True)
    return drawn / total


def drawn(draws: torch.Generator, *shape: int) -> Tensor:
    """Normal draws of spread 1 / sqrt(fan in)."""
    normal = torch.randn(shape, generator=draws)
    return shape[-1] ** -0.5 * normal


def dealt(rows: Table, clients: int, alpha: float, seed: int) -> list[Client]:
    """Clients with two rows at least, their labels as unequal as alpha says."""
    draws = generator(seed, "dealt")
    parts = by_dirichlet(rows.y, clients, alpha, draws, least=2)
    return clients_of(rows, parts)


def net(seed: int, classes: int = 10) -> dict[str, Tensor]:
    """A fresh net of one hidden layer."""
    draws = generator(seed, "net")
    found = {}
    for name, *shape in (("first", HIDDEN, SIDE * SIDE), ("last", classes, HIDDEN)):
        weight = drawn(draws, *shape)
        found[f"{name}.weight"] = 2**0.5 * weight
        found[f"{name}.bias"] = torch.zeros(shape[0])
    return found


def answer(tensors: Tensors, x: Tensor) -> Tensor:
    """Logits [N, C]."""
    for layer in ("first", "last"):
        weight = tensors[f"{layer}.weight"]
        bias = tensors[f"{layer}.bias"]
        x = F.linear(x, weight, bias)
        if layer == "first":
            x = x.relu()
    return x


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
