"""What methods that learn by gradients share: a task, steps of descent, and federated averaging.

Legend: C clients, P numbers of all tensors together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixwell.mixing import check_above, check_least
from mixwell.parallel.federated.aggregation import Aggregation, combined
from mixwell.parallel.federated.clients import Client, Tensors, batches
from mixwell.parallel.federated.simulation import Answer, Answers, Federated, Turn

Loss = Callable[[Tensors, Any], Tensor]  # of tensors and rows: their mean


@dataclass(frozen=True, eq=False)
class Task:
    """What is learnt: tensors at their start, and the mean loss of rows under tensors."""

    start: Tensors
    loss: Loss
    losses: Loss | None = None  # of each row [N]; None: rows are asked one by one


@dataclass(frozen=True)
class Learning:
    """Options of clients that take steps of gradient descent."""

    _: KW_ONLY
    lr: float = 0.1  # of a client's steps
    steps: int = 10  # of a client in a round
    batch_size: int = 32  # rows of a step, drawn with replacement; all of them where a client has no more
    server_lr: float = 1.0  # of the step along the clients' combined change
    aggregation: Aggregation = field(default_factory=Aggregation)

    def __post_init__(self) -> None:
        check_above(self, lr=0, server_lr=0)
        check_least(self, steps=1, batch_size=1)


def gradient(loss: Loss, tensors: Tensors, rows: Any) -> dict[str, Tensor]:
    """The gradient of the mean loss of rows, by name; zeros where a tensor has no part in it."""
    pairs = tensors.items()
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in pairs}
    with torch.enable_grad():
        value = loss(leaves, rows)
    inputs = list(leaves.values())
    found = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found))


@torch.no_grad()
def row_losses(task: Task, tensors: Tensors, rows: Any) -> Tensor:
    """The loss of each row [N]."""
    if task.losses is not None:
        return task.losses(tensors, rows)
    found = []
    places = torch.arange(len(rows))
    for place in places.split(1):
        own = task.loss(tensors, rows.of(place))
        found.append(own)
    return torch.stack(found)


def stepped(tensors: Tensors, grads: Tensors, lr: float) -> dict[str, Tensor]:
    """Tensors after a step down."""
    return moved(tensors, grads, -lr)


def descended(loss: Loss, tensors: Tensors, parts: Iterable[Any], lr: float) -> Tensors:
    """Tensors after a step on each batch."""
    for rows in parts:
        tensors = stepped(tensors, gradient(loss, tensors, rows), lr)
    return tensors


def change(after: Tensors, before: Tensors) -> dict[str, Tensor]:
    """after - before, by name."""
    return {name: after[name] - before[name] for name in after}


def moved(tensors: Tensors, step: Tensors, times: float = 1.0) -> dict[str, Tensor]:
    """Tensors after a step; those without one stay."""
    found = dict(tensors)
    for name, one in step.items():
        found[name] = tensors[name] + times * one
    return found


def flat(tensors: Tensors) -> Tensor:
    """All numbers [P], by name."""
    names = sorted(tensors)
    parts = [tensors[name].flatten() for name in names]
    return torch.cat(parts)


def unflat(row_P: Tensor, like: Tensors) -> dict[str, Tensor]:
    """What `flat` made flat."""
    names = sorted(like)
    sizes = [like[name].numel() for name in names]
    found = {}
    for name, part in zip(names, row_P.split(sizes)):
        found[name] = part.view_as(like[name])
    return found


def together(answers: Sequence[Tensors], weights: Sequence[float], aggregation: Aggregation) -> dict[str, Tensor]:
    """What clients said, made one; all have the same names."""
    rows = [flat(tensors) for tensors in answers]
    weights_C = torch.tensor(weights, dtype=torch.float64)
    rows_CP = torch.stack(rows)
    row_P = combined(rows_CP, weights_C, aggregation)
    return unflat(row_P, answers[0])


def stacked(rows: Sequence[Tensors]) -> dict[str, Tensor]:
    """Stacks of tensors that have the same names."""
    found = {}
    for name in rows[0]:
        parts = [one[name] for one in rows]
        found[name] = torch.stack(parts)
    return found


def unstacked(stacks: Tensors) -> list[dict[str, Tensor]]:
    """The rows of stacks, as tensors by name each."""
    columns = [stack.unbind() for stack in stacks.values()]
    return [dict(zip(stacks, row)) for row in zip(*columns)]


def with_rows(stacks: Tensors, rows: Mapping[int, Tensors]) -> dict[str, Tensor]:
    """Copies of stacks with other tensors in some rows."""
    found = {name: stack.clone() for name, stack in stacks.items()}
    for place, tensors in rows.items():
        for name, tensor in tensors.items():
            found[name][place] = tensor
    return found


def prefixed(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """Tensors by longer names."""
    pairs = tensors.items()
    return {f"{prefix}.{name}": tensor for name, tensor in pairs}


def below(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """Those whose names begin with a prefix, without it."""
    start = f"{prefix}."
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(start):
            own = name.removeprefix(start)
            found[own] = tensor
    return found


class Averaging(Federated):
    """Clients descend from the server's tensors and send their change; the server goes along what they are made into.

    What a method does otherwise it overrides.
    """

    def __init__(self, task: Task, config: Learning) -> None:
        self.task = task
        self.config: Any = config

    def start(self, clients: Sequence[Client], generator: torch.Generator) -> Tensors:
        """The task's tensors."""
        return dict(self.task.start)

    def model(self, state: Tensors) -> Tensors:
        """The task's tensors as they are now."""
        return {name: state[name] for name in self.task.start}

    def answer(self, client: Client, message: Tensors, memory: Tensors, turn: Turn) -> Answer:
        """The change after the client's steps."""
        config, rows = self.config, client.rows
        draws = turn.draws("batches", client.number)
        parts = batches(rows, config.batch_size, config.steps, draws)
        after = descended(self.task.loss, message, parts, config.lr)
        step = change(after, message)
        return Answer(step, len(rows))

    def merged(self, state: Tensors, answers: Answers, turn: Turn) -> Tensors:
        """A step along the combined change."""
        step = joined(answers, self.config.aggregation)
        return moved(state, step, self.config.server_lr)


def joined(answers: Mapping[int, Answer], aggregation: Aggregation) -> dict[str, Tensor]:
    """What all who answered said, made one."""
    said = [answer.tensors for answer in answers.values()]
    weights = [answer.weight for answer in answers.values()]
    return together(said, weights, aggregation)
