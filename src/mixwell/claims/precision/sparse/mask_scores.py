"""Static model pruning: masks alone move a network to a new task as well as pruning and tuning what is left.

Paper: Pruning Pre-trained Language Models Without Fine-Tuning.
Tried: a network of 64-256-256 with a head of ten frozen random rows, trained on digits 0 to 4 and moved to 5 to 9 in
300 steps with a tenth of its weights, against the tenth of largest weights tuned for as many; three learning
rates each.
Against it: an error above that by a point or more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.precision._tasks import Task, digits, error, learn
from mixwell.core.rng import generator
from mixwell.precision.sparse.mask_scores import Config, MaskScores
from mixwell.precision.sparse.sparsifier import drawn, largest_of_all

WIDTHS, STEPS, SHARE = (64, 256, 256, 10), 300, 0.1
INNER = ("0.*", "2.*")


def _half(task: Task, upper: bool) -> Task:
    """The rows of digits 0 to 4, or of 5 to 9."""
    mine = (task.y >= 5) == upper
    held = (task.held_y >= 5) == upper
    x, y = task.x[mine], task.y[mine]
    held_x, held_y = task.held_x[held], task.held_y[held]
    return Task(x, y, held_x, held_y)


def _before(seed: int, task: Task) -> nn.Sequential:
    """A network that has learnt the lower digits."""
    draws = generator(seed, "model")
    model = drawn(WIDTHS, draws)
    lower = _half(task, upper=False)
    body = model[:3].parameters()
    learn(model, body, lower, seed, steps=STEPS, lr=2e-3)
    return model


def masked(bench: Bench, seed: int, lr: float) -> float:
    """Error on the upper digits of a network moved by masks."""
    task = digits(seed)
    model = _before(seed, task)
    method = MaskScores(model, Config(share_kept=SHARE, weights=INNER), generator(seed, "masks"))

    def step(done: float) -> float:
        method.advance(done)
        return 0.0

    learn(model, method.trained(), _half(task, upper=True), seed + 1, steps=STEPS, lr=lr, step=step)
    method.advance(1.0)
    return error(model, _half(task, upper=True))


def tuned(bench: Bench, seed: int, lr: float) -> float:
    """Error of a network pruned by magnitude whose weights that stay, and biases, are tuned."""
    task = digits(seed)
    model = _before(seed, task)
    for place in (0, 2):
        _keep_largest(model[place])
    upper = _half(task, upper=True)
    body = model[:3].parameters()
    learn(model, body, upper, seed + 1, steps=STEPS, lr=lr)
    return error(model, upper)


@torch.no_grad()
def _keep_largest(linear: nn.Module) -> None:
    weight = linear.get_parameter("weight")
    mask = largest_of_all(weight.abs(), round(SHARE * weight.numel()))
    weight.mul_(mask)

    def kept(grad: Tensor) -> Tensor:
        return grad * mask

    weight.register_hook(kept)


CLAIM = Claim("Masks alone are within a point of pruning and tuning.", "share of errors", at_least=-0.01, sides={
    "method": Side(masked, grid={"lr": (3e-3, 1e-2, 3e-2)}),
    "baseline": Side(tuned, grid={"lr": (1e-3, 3e-3, 1e-2)})})
