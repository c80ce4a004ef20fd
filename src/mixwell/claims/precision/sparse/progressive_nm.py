"""Progressive N:M: at high sparsity a mask that fades in ends with fewer errors than SR-STE.

Paper: Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers.
Tried: a network of 64-256-256-20 on a teacher's classes, 300 steps, both inner matrices and the last at 1:16, judged by
the hard mask; three learning rates and three values of each side's own: the span of the fading, SR-STE's decay.
Against it: an error that is no lower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.precision._tasks import error, learn, teacher
from mixwell.core.rng import generator
from mixwell.precision.sparse.progressive_nm import Config, ProgressiveNM
from mixwell.precision.sparse.sparsifier import drawn

WIDTHS, STEPS = (64, 256, 256, 20), 300
KEPT, GROUP = 1, 16
RATES = (1e-3, 3e-3, 1e-2)


def fading(bench: Bench, seed: int, lr: float, span: float) -> float:
    """Error of a network whose mask fades in."""
    return _trained(seed, lr, Config(kept=KEPT, group=GROUP, span=span), 0.0)


def decaying(bench: Bench, seed: int, lr: float, decay: float) -> float:
    """Error under SR-STE: the hard mask from the first step on, what is outside decaying."""
    return _trained(seed, lr, Config(kept=KEPT, group=GROUP, span=1e-9), decay)


def _trained(seed: int, lr: float, config: Config, decay: float) -> float:
    task = teacher(seed)
    draws = generator(seed, "model")
    model = drawn(WIDTHS, draws)
    method = ProgressiveNM(model, config, draws)

    def step(done: float) -> Tensor:
        method.advance(max(done, 1e-6))  # a span of next to nothing is over
        squares = [outside.square().sum() for outside in method.outside()]
        return decay / 2 * torch.stack(squares).sum()

    learn(model, method.trained(), task, seed, steps=STEPS, lr=lr, step=step)
    method.finish()
    return error(model, task)


CLAIM = Claim("A mask that fades in errs less than SR-STE at 1:16.", "share of errors", sides={
    "method": Side(fading, grid={"lr": RATES, "span": (0.3, 0.6, 0.9)}),
    "baseline": Side(decaying, grid={"lr": RATES, "decay": (1e-5, 2e-4, 1e-3)})})
