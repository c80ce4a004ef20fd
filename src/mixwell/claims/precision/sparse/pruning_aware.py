"""PAT: a stream thinned while a model is tuned ends better than one cut first and tuned for as many steps.

Paper: PAT: Pruning-Aware Tuning for Large Language Models.
Tried: the bench's mixture after 150,000 tokens, a quarter of its 64 channels gone, 400 steps of 256 tokens by Adam with
all weights tuned, three learning rates; against the channels of largest mean square kept from the start, tuned alike.
Bits per byte of the folded models on held-out text. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.claims._conversions import bits
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.precision._weighing import trained
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel
from mixwell.precision.sparse.pruning_aware import Config, PruningAware, folded
from mixwell.run.stages.convert import training_windows

STEPS, ROWS, WINDOW = 400, 4, 64
SHARE, WIDTH = 0.25, 64
LOOKED_AT = 4096  # tokens, for the mean squares of channels
RATES = (1e-3, 2e-3, 4e-3)


def _tune(bench: Bench, model: Any, parameters: list[nn.Parameter], seed: int, lr: float,
          step: Callable[[float], Tensor | float]) -> None:
    """Steps of Adam on training text; `step` gives what is added to the loss."""
    windows = torch.cat(list(training_windows(bench.data, STEPS * ROWS * WINDOW, WINDOW + 1).batches))
    draws = generator(seed, "order")
    optimizer = torch.optim.Adam(parameters, lr=lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for number in range(STEPS):
        added = step(number / STEPS)
        rows = torch.randint(len(windows), (ROWS,), generator=draws)
        tokens = windows[rows]
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        whole = loss.nats + loss.aux + added
        optimizer.zero_grad()
        whole.backward()
        optimizer.step()
        falling.step()


def thinned(bench: Bench, seed: int, lr: float) -> float:
    """Bits per byte of a model whose stream is thinned while it is tuned."""
    model = LanguageModel.from_checkpoint(trained(bench, seed), dtype=torch.float32)
    config = Config(share=SHARE, rank=WIDTH // 4, steps=STEPS)
    method = PruningAware(model, config, generator(seed, "pat"))

    def step(done: float) -> Tensor:
        method.advance(done)
        terms = list(method.losses().values())
        return torch.stack(terms).sum()

    _tune(bench, model, method.trained(), seed, lr, step)
    return bits(bench, method.finish())


def cut(bench: Bench, seed: int, lr: float) -> float:
    """Bits per byte of a model whose quietest channels were cut before it was tuned."""
    before = trained(bench, seed)
    squares = torch.zeros(WIDTH, dtype=torch.float64)
    for streams in training_windows(bench.data, LOOKED_AT, WINDOW).streams(before):
        for stream in streams:
            squares += stream.double().square().sum(0)
    kept = squares.topk(round((1 - SHARE) * WIDTH)).indices.sort().values
    eye = torch.eye(WIDTH, dtype=torch.float64)
    writers = 1 + 2 * int(before.arch["num_layers"])
    narrow = folded(before, [eye] * writers, kept)
    model = LanguageModel.from_checkpoint(narrow, dtype=torch.float32)
    _tune(bench, model, list(model.parameters()), seed, lr, lambda done: 0.0)
    return bits(bench, model.to_checkpoint())


CLAIM = Claim("A stream thinned while tuning ends better than one cut first.", "bits per byte", sides={
    "method": Side(thinned, grid={"lr": RATES}), "baseline": Side(cut, grid={"lr": RATES})})
