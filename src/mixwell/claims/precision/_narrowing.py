"""Ways to make a model narrower that claims of this room compare with: by the weights' own size, and at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Untestable
from mixwell.core import registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict
from mixwell.core.rng import generator
from mixwell.lm.calibration import TextCalibration
from mixwell.lm.conversion import convert
from mixwell.lm.receipt import measure
from mixwell.precision.cutting import Block, Weights, best, blocks, cut, kept_units, staying
from mixwell.run.stages.convert import held_out, training_windows

CALIBRATION, WINDOW = 4096, 64  # tokens looked at, and of a window of them
WINDOWS = 64  # held out, weighed on
LEAST = 0.005  # KL in nats a token that a cut has to cost before ways to cut can be told apart
Score = Callable[[Block, Weights], Tensor]  # of each unit [.., F]


def looked_at(bench: Bench) -> TextCalibration:
    """The text that every side looks at."""
    return training_windows(bench.data, CALIBRATION, WINDOW)


def made(bench: Bench, before: Checkpoint, seed: int, method: str, **options: Any) -> Checkpoint:
    """What a method of the room makes of the model."""
    entry = registry.find(f"precision.{method}")
    config = from_dict(entry.module().Config, options)
    draws = generator(seed, method)
    return convert(entry, before, config, draws, looked_at(bench))


def loudness(block: Block, weights: Weights) -> Tensor:
    """The product of a unit's norms in the three maps [.., F]."""
    gate_up, down = weights
    into = gate_up.double().norm(dim=-1)
    gate, up = into.chunk(2, -1)
    out = down.double().norm(dim=-2)
    return gate * up * out


def at_random(seed: int) -> Score:
    """A score that says nothing."""
    draws = generator(seed, "narrowing")

    def score(block: Block, weights: Weights) -> Tensor:
        shape = weights[1].shape
        return torch.rand(*shape[:-2], shape[-1], generator=draws)

    return score


def evenly(bench: Bench, before: Checkpoint, share: float, multiple: int, score: Score) -> Checkpoint:
    """The model with the same share of every block gone, its units of least score."""
    found = blocks(before, "a cut")
    shares = [1 - share] * before.arch["num_layers"]
    narrow = {}
    for block, width in staying(before, found, shares, multiple).items():
        weights = block.weights(before)
        scores = score(block, weights)
        kept = best(scores, width)
        narrow[block] = kept_units(weights, kept)
    return cut(before, narrow, looked_at(bench))


def told(bench: Bench, before: Checkpoint, sides: dict[str, Checkpoint]) -> dict[str, dict[str, float]]:
    """KL and rise of the loss of every side; raises `Untestable` where the baseline costs nothing."""
    windows = held_out(bench.data, WINDOWS, WINDOW)
    found = {}
    for name, after in sides.items():
        receipt = measure(before, after, windows, name, rows=WINDOWS)
        rise = receipt.loss_after_nats - receipt.loss_before_nats
        found[name] = {"KL": receipt.kl_nats, "rise": rise}
    cost = found["baseline"]["KL"]
    if cost < LEAST:
        raise Untestable(f"the baseline's cut costs {cost:.4f} nats of KL; expected {LEAST} or more")
    return found
