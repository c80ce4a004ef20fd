"""SAFS: a pruned network with searched activations errs less than with ReLU, at as many trainings tried.

Paper: Learning Activation Functions for Sparse Neural Networks.
Tried: a network of 64-128-64-10 on digits, 98 % of each matrix pruned by size. Eight short trainings of 100 steps,
judged on 300 rows held back, choose operators (at one rate), or for ReLU one of eight learning rates; then 300 steps on
all rows, the scales of the operators learnt. Against it: an error that is no lower.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.precision._tasks import Task, digits, error, learn
from mixwell.core.rng import generator
from mixwell.precision.sparse.activations import Config, activations, replace
from mixwell.precision.sparse.sparsifier import drawn, largest_of_all

WIDTHS, SHARE, EVALUATIONS = (64, 128, 64, 10), 0.02, 8
SHORT, LONG = 100, 300
RATE = 1e-2  # of the sparse network while operators are tried, and after
RATES = (3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
HELD_BACK = 300

CLAIM = Claim("Searched activations err less than ReLU at 98 % zeros.", "share of errors")


def _pruned(seed: int, task: Task) -> nn.Sequential:
    """A network that has learnt, and has lost all but its largest weights."""
    model = drawn(WIDTHS, generator(seed, "model"))
    learn(model, model.parameters(), task, seed, steps=LONG, lr=3e-3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            _mask(parameter)
    return model


@torch.no_grad()
def _mask(weight: nn.Parameter) -> None:
    count = round(SHARE * weight.numel())
    mask = largest_of_all(weight.abs(), count)
    weight.mul_(mask)


def _tuned(model: nn.Module, task: Task, judged: Task, seed: int, steps: int, lr: float) -> float:
    """Error after a training in which what is zero stays so."""
    masks = {name: weight != 0 for name, weight in model.named_parameters() if weight.ndim > 1}
    for name, mask in masks.items():
        model.get_parameter(name).register_hook(mask.mul)
    learn(model, model.parameters(), task, seed + 1, steps=steps, lr=lr)
    return error(model, judged)


def _apart(task: Task) -> Task:
    """The rows to learn from, and some of them held back."""
    left = len(task.x) - HELD_BACK
    held_x, x = task.x.split([HELD_BACK, left])
    held_y, y = task.y.split([HELD_BACK, left])
    return Task(x, y, held_x, held_y)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Errors with searched operators, and with ReLU at its best rate."""
    task = digits(seed)
    inner = _apart(task)
    start = _pruned(seed, task)

    def energy(operators: Sequence[str]) -> float:
        model = copy.deepcopy(start)
        replace(model, operators)
        return _tuned(model, inner, inner, seed, SHORT, RATE)

    config = Config(layers=2, evaluations=EVALUATIONS)
    found = activations(energy, config, generator(seed, "search"))
    ours = copy.deepcopy(start)
    replace(ours, found.operators, learnt=True)
    tried = {lr: _tuned(copy.deepcopy(start), inner, inner, seed, SHORT, lr) for lr in RATES}
    best = min(tried, key=tried.__getitem__)
    theirs = copy.deepcopy(start)
    return {"method": _tuned(ours, task, task, seed, LONG, RATE),
            "baseline": _tuned(theirs, task, task, seed, LONG, best)}
