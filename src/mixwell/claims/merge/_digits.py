"""What claims of merges share: scikit-learn's digits, small nets on them, and tasks that turn them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core import registry
from mixwell.core.rng import generator

SIZES = (64, 96, 96, 10)
SIDE, BATCH = 8, 64
Tensors = Mapping[str, Tensor]
V = TypeVar("V")
Merge = Callable[[float], Tensors]  # a setting -> the merged net


class Rows(NamedTuple):
    """Images [N, 64] of ink from 0 to 1, and their digits [N]."""

    x: Tensor
    y: Tensor

    def of(self, chosen: Tensor) -> Rows:
        """Some of the rows."""
        return Rows(self.x[chosen], self.y[chosen])

    def turned(self, quarters: int) -> Rows:
        """The images turned by quarters."""
        images = self.x.view(-1, SIDE, SIDE)
        moved = images.rot90(quarters, (1, 2))
        return Rows(moved.flatten(1), self.y)


class Split(NamedTuple):
    """Rows to train on, to choose settings by, and to judge by."""

    train: Rows
    valid: Rows
    test: Rows

    def turned(self, quarters: int) -> Split:
        """All of them turned."""
        return Split(*(rows.turned(quarters) for rows in self))


def digits(seed: int) -> Split:
    """900 rows to train on, 300 to choose by, 597 to judge by, in an order of the seed's."""
    from sklearn.datasets import load_digits

    found = load_digits()
    ink = torch.tensor(found.data, dtype=torch.float32)
    rows = Rows(ink / 16, torch.tensor(found.target))
    draws = generator(seed, "digits")
    order = torch.randperm(len(rows.y), generator=draws)
    parts = order.split([900, 300, 597])
    return Split(*map(rows.of, parts))


def fresh(seed: int, sizes: Sequence[int] = SIZES) -> dict[str, Tensor]:
    """A net's parameters: weights of spread sqrt(2 / fan in), no biases."""
    draws = generator(seed, "net")
    found = {}
    pairs = enumerate(itertools.pairwise(sizes))
    for layer, (fan_in, fan_out) in pairs:
        weight = torch.randn(fan_out, fan_in, generator=draws)
        spread = (2 / fan_in) ** 0.5
        found[f"w{layer}"] = spread * weight
        found[f"b{layer}"] = torch.zeros(fan_out)
    return found


def hidden(net: Tensors, x: Tensor) -> Tensor:
    """What the last hidden layer says."""
    last = len(net) // 2 - 1
    layers = range(last)
    for layer in layers:
        weight, bias = net[f"w{layer}"], net[f"b{layer}"]
        x = F.linear(x, weight, bias)
        x = x.relu()
    return x


def answer(net: Tensors, x: Tensor) -> Tensor:
    """Logits."""
    last = len(net) // 2 - 1
    features = hidden(net, x)
    return F.linear(features, net[f"w{last}"], net[f"b{last}"])


def tuned(net: Tensors, rows: Rows, seed: int, *, steps: int = 150, lr: float = 1e-3,
          loss: Callable[[Tensors, Rows], Tensor] | None = None) -> dict[str, Tensor]:
    """The net after steps of Adam on batches of 64."""
    draws = generator(seed, "batches")
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in net.items()}
    parameters = list(leaves.values())
    optimizer = torch.optim.Adam(parameters, lr=lr)
    loss = loss or cross_entropy
    for _ in range(steps):
        chosen = torch.randint(0, len(rows.y), (BATCH,), generator=draws)
        batch = rows.of(chosen)
        missed = loss(leaves, batch)
        optimizer.zero_grad()
        missed.backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in leaves.items()}


def cross_entropy(net: Tensors, rows: Rows) -> Tensor:
    """Of the digits."""
    return F.cross_entropy(answer(net, rows.x), rows.y)


def accuracy(net: Tensors, rows: Rows) -> float:
    """Share of digits that are right."""
    return right(answer(net, rows.x), rows)


def right(logits: Tensor, rows: Rows) -> float:
    """Share of rows whose largest number stands at their digit."""
    found = logits.argmax(-1) == rows.y
    return float(found.float().mean())


def mean_accuracy(net: Tensors, splits: Sequence[Split], part: str) -> float:
    """Over tasks, on `valid` or `test`."""
    scores = [accuracy(net, getattr(split, part)) for split in splits]
    return sum(scores) / len(scores)


class Tuned(NamedTuple):
    """A base that reads upright digits, and fine-tunes of it, each on digits turned otherwise."""

    splits: list[Split]
    base: dict[str, Tensor]
    models: list[dict[str, Tensor]]


def turned_tasks(seed: int, steps: int = 60) -> Tuned:
    """Four tasks: digits turned by no quarter, one, two and three."""
    split = digits(seed)
    start = fresh(seed)
    base = tuned(start, split.train, seed, steps=150)
    splits = [split.turned(quarters) for quarters in range(4)]
    models = []
    for number, own in enumerate(splits):
        models.append(tuned(base, own.train, seed + number, steps=steps))
    return Tuned(splits, base, models)


def merged(name: str, task: Tuned, **options: Any) -> dict[str, Tensor]:
    """The merge of the fine-tunes by a method or a row of one."""
    from mixwell.core.config import from_dict
    from mixwell.merge.merging import Model
    from mixwell.merge.merging import merged as merge
    from mixwell.merge.naming import method_of

    entry, row = method_of(name)
    config = from_dict(entry.module().Config, row | options)
    models = [Model(model, f"task {number}") for number, model in enumerate(task.models)]
    base = Model(task.base, "base") if "base" in entry.tags else None
    return dict(merge(entry.name, models, base, config))


def best(merge: Merge, settings: Sequence[float], task: Tuned) -> float:
    """Accuracy on the test rows of all tasks with the setting that is best on the validation rows."""
    nets = [merge(setting) for setting in settings]
    net = best_of(nets, task.splits)
    return mean_accuracy(net, task.splits, "test")


def best_of(nets: Sequence[Tensors], splits: Sequence[Split]) -> Tensors:
    """The net that is best on the tasks' validation rows."""
    scores = [mean_accuracy(net, splits, "valid") for net in nets]
    return at_best(nets, scores)


def at_best(values: Sequence[V], scores: Sequence[float]) -> V:
    """The value with the highest score, the first of several."""
    place = scores.index(max(scores))
    return values[place]


def module(name: str) -> Any:
    """A method's module."""
    return registry.find(name).module()
