"""Small tasks for claims on sparse networks: a teacher's classes, digits, and how a network learns them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mixwell.core.rng import generator

Step = Callable[[float], Tensor | float]  # of the share done: comes to it, and gives what is added to the loss


class Task(NamedTuple):
    """Rows to learn from and others to be judged by, with their classes."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor


def nothing(done: float) -> float:
    """A step that changes nothing."""
    return 0.0


def teacher(seed: int, classes: int = 20, rows: int = 6000) -> Task:
    """Normal rows of 64 with the classes that a random network of 128 hidden units gives them."""
    draws = generator(seed, "teacher")
    x = torch.randn(rows + 2000, 64, generator=draws)
    into = torch.randn(64, 128, generator=draws)
    out = torch.randn(128, classes, generator=draws)
    hidden = (x @ into).relu()
    centred = hidden - hidden.mean(0)
    y = (centred @ out).argmax(1)
    return Task(x[:rows], y[:rows], x[rows:], y[rows:])


def digits(seed: int) -> Task:
    """Scikit-learn's digits, 1,200 to learn from."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    draws = generator(seed, "digits")
    order = torch.randperm(len(labels), generator=draws)
    x = torch.from_numpy(images).float()[order] / 16
    y = torch.from_numpy(labels).long()[order]
    return Task(x[:1200], y[:1200], x[1200:], y[1200:])


def learn(model: nn.Module, trained: Iterable[nn.Parameter], task: Task, seed: int, *, steps: int, lr: float,
          step: Step = nothing, batch: int = 64) -> None:
    """Train by Adam, its rate falling to zero by a cosine; `step` is asked before every one."""
    draws = generator(seed, "order")
    optimizer = torch.optim.Adam(trained, lr=lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for number in range(steps):
        added = step(number / steps)
        rows = torch.randint(len(task.x), (batch,), generator=draws)
        loss = cross_entropy(model(task.x[rows]), task.y[rows]) + added
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()


@torch.no_grad()
def error(model: nn.Module, task: Task) -> float:
    """Share of held-out rows whose class is missed."""
    missed = model(task.held_x).argmax(1) != task.held_y
    return float(missed.double().mean())
