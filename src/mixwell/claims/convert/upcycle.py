"""Sparse upcycling: a mixture made of copies of a trained dense block is better, after equal tokens, than a fresh one.

Paper: Llama 3 Meets MoE: Efficient Upcycling.
Tried: the bench's language model, a dense block of width 64 trained on 600,000 tokens, turned into top-2 of eight and
trained on 600,000 more, against a fresh mixture of that shape on the same 600,000. Beside: half of each expert's units
drawn anew (Drop-Upcycling: Training Sparse Mixture of Experts with Partial Re-initialization), and the dense model
trained on. Against it: bits per byte that are no lower than the fresh mixture's, or more than 1 % above the dense
model's.
"""

from __future__ import annotations

import tempfile

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.language import RATES, dense, quality
from mixwell.convert.upcycle import Config, upcycle
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel
from mixwell.lm.training.loop import TrainConfig, train

TOKENS, MORE = 600_000, 600_000


def start(bench: Bench, seed: int) -> Checkpoint:
    """The dense model that all but the fresh mixture start from."""
    short = bench.train(dense(bench, 64), seed, tokens=TOKENS)
    return short.model.to_checkpoint()


def trained_on(bench: Bench, checkpoint: Checkpoint, seed: int, lr: float) -> float:
    """Bits per byte after `MORE` tokens, in the order and by the schedule of a fresh model's."""
    tensors = {name: tensor.detach().clone() for name, tensor in checkpoint.tensors.items()}
    copied = LanguageModel.from_checkpoint(checkpoint.derive(tensors=tensors))
    config = TrainConfig(tokens=MORE, batch_size=32, seq_len=64, lr=lr, seed=seed + 1000)
    with tempfile.TemporaryDirectory() as folder:
        done = train(copied, bench.data, config, folder)
    return bench.evaluate(done.model).mean


def upcycled(bench: Bench, seed: int, *, reinitialise: float, lr: float) -> float:
    """The dense model as a mixture, this share of each expert's units drawn anew, trained on."""
    config = Config(reinitialise=reinitialise)
    mixture = upcycle(start(bench, seed), config, generator(seed, "upcycle"))
    return trained_on(bench, mixture, seed, lr)


def longer(bench: Bench, seed: int, *, lr: float) -> float:
    """The dense model trained on."""
    return trained_on(bench, start(bench, seed), seed, lr)


def fresh(bench: Bench, seed: int, *, lr: float) -> float:
    """A mixture from the beginning."""
    return quality(bench, seed + 1000, tokens=MORE, lr=lr, swapped=None)


GRID = {"lr": RATES}
CLAIM = Claim(
    "An upcycled mixture beats a fresh one after equal tokens.", BITS,
    provided=(no_worse(baseline="dense trained on"),),
    sides={"method": Side(upcycled, {"reinitialise": 0.0}, GRID), "baseline": Side(fresh, {}, GRID),
           "half drawn anew": Side(upcycled, {"reinitialise": 0.5}, GRID), "dense trained on": Side(longer, {}, GRID)})
