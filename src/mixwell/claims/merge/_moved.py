"""Nets on the way from one to another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from mixwell.claims.merge._digits import Tensors, Tuned, best_of, mean_accuracy, merged


def between(base: Tensors, net: Tensors, share: float) -> dict[str, Tensor]:
    """The base plus this share of the net's change from it, beyond the net where it is above 1."""
    found = {}
    for name, start in base.items():
        end = net[name]
        found[name] = torch.lerp(start, end, share)
    return found


def chosen(task: Tuned, name: str, option: str, values: Sequence[float], scales: Sequence[float],
           **options: float) -> float:
    """Test accuracy of a merge with the value and the scale of its change that are best on validation rows."""
    nets = []
    for value, scale in itertools.product(values, scales):
        net = merged(name, task, **{option: value}, **options)
        moved = between(task.base, net, scale)
        nets.append(moved)
    best = best_of(nets, task.splits)
    return mean_accuracy(best, task.splits, "test")
