"""What the claims of this room share: the bench's mixture, trained, rounded by a method, and weighed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.core import registry
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.config import from_dict
from mixwell.core.rng import generator
from mixwell.lm.conversion import convert
from mixwell.lm.receipt import measure
from mixwell.run.stages.convert import held_out, training_windows

TOKENS = 150_000  # trained on
CALIBRATION = 4096  # tokens looked at


def trained(bench: Bench, seed: int) -> Checkpoint:
    """The bench's mixture after a short training."""
    arch = bench.arch()
    done = bench.train(arch, seed, tokens=TOKENS, swapped="channel_mixer")
    return done.model.to_checkpoint()


def rounded(bench: Bench, before: Checkpoint, seed: int, method: str, **options: Any) -> dict[str, float]:
    """KL of the rounded model in nats a token, and the rise of its loss."""
    entry = registry.find(f"precision.{method}")
    config = from_dict(entry.module().Config, options)
    text = training_windows(bench.data, CALIBRATION, 64)
    draws = generator(seed, method)
    after = convert(entry, before, config, draws, text)
    return weighed(bench, before, after, method)


def weighed(bench: Bench, before: Checkpoint, after: Checkpoint, method: str) -> dict[str, float]:
    """KL and rise of the loss on sixteen held-out windows."""
    windows: Tensor = held_out(bench.data, 16, 64)
    receipt = measure(before, after, windows, f"precision.{method}")
    rise = receipt.loss_after_nats - receipt.loss_before_nats
    return {"KL": receipt.kl_nats, "rise": rise}


def mixed(bench: Bench, before: Checkpoint, seed: int, method: str, **options: Any) -> dict[str, float]:
    """As `rounded`, by a method that gives each matrix 2, 3 or 4 bits of its own, 3 on average."""
    budget: dict[str, Any] = {"widths": (2, 3, 4), "bits_per_weight": 3.0, "group_size": 32}
    settings = budget | options
    return rounded(bench, before, seed, method, **settings)


def against_equal(bench: Bench, before: Checkpoint, seed: int, method: str,
                  **options: Any) -> dict[str, dict[str, float]]:
    """Bits by the method against 3 bits everywhere, both `rounded`."""
    mine = mixed(bench, before, seed, method, **options)
    equal = rounded(bench, before, seed, "integers", bits=3, group_size=32)
    return {"method": mine, "baseline": equal}
