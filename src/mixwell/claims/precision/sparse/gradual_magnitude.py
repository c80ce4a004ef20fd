"""S4: of two networks with equally many nonzeros the wide one, pruned, errs less than the narrow dense one.

Paper: S4: a High-sparsity, High-performance AI Accelerator.
Tried: one hidden layer on a teacher's 20 classes: 16 units dense against 128 with one weight in eight left in each
matrix, pruned while training; 600 steps each, three learning rates each. The wide one costs eight times as much to
train: "longer" is the narrow one with eight times the steps. The chip's speed is not tried here.
Against it: an error of the wide network that is no lower.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.precision._tasks import error, learn, teacher
from mixwell.core.rng import generator
from mixwell.precision.sparse.gradual_magnitude import Config, GradualMagnitude
from mixwell.precision.sparse.sparsifier import drawn

NARROW, FOLD, STEPS = 16, 8, 600
RATES = (1e-3, 3e-3, 1e-2)


def wide(bench: Bench, seed: int, lr: float) -> float:
    """Error of the wide network with one weight in `FOLD` left."""
    task = teacher(seed)
    draws = generator(seed, "model")
    model = drawn((64, FOLD * NARROW, 20), draws)
    method = GradualMagnitude(model, Config(share=1 - 1 / FOLD), draws)

    def step(done: float) -> float:
        method.advance(done)
        return 0.0

    learn(model, method.trained(), task, seed, steps=STEPS, lr=lr, step=step)
    method.finish()
    return error(model, task)


def narrow(bench: Bench, seed: int, lr: float, times: int = 1) -> float:
    """Error of the narrow network, trained for so many times the steps."""
    task = teacher(seed)
    draws = generator(seed, "model")
    model = drawn((64, NARROW, 20), draws)
    learn(model, model.parameters(), task, seed, steps=times * STEPS, lr=lr)
    return error(model, task)


CLAIM = Claim("Wide and sparse errs less than narrow and dense at equal nonzeros.", "share of errors", sides={
    "method": Side(wide, grid={"lr": RATES}),
    "baseline": Side(narrow, grid={"lr": RATES}),
    "longer": Side(narrow, options={"times": FOLD}, grid={"lr": RATES})})
