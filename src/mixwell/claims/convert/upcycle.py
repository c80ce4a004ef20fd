"""Sparse upcycling: a mixture made of copies of a trained dense block is better, after equal tokens, than a fresh one.

Paper: Llama 3 Meets MoE: Efficient Upcycling.
Tried: the bench's language model, a dense block of width 64 trained on 150,000 tokens, turned into top-2 of eight and
trained on 75,000 more, against a fresh mixture of that shape on the same 75,000. Beside: half of each expert's units
drawn anew (Drop-Upcycling: Training Sparse Mixture of Experts with Partial Re-initialization), and the dense model
trained on. Against it: bits per byte that are no lower than the fresh mixture's, or higher than the dense model's.
"""

from __future__ import annotations

import tempfile

from mixwell.claims._judging import BITS, no_worse, provided
from mixwell.claims._series import columns
from mixwell.claims.bench import Bench
from mixwell.claims.language import dense
from mixwell.convert.upcycle import Config, upcycle
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel
from mixwell.lm.training.loop import TrainConfig, train

TOKENS, MORE = 150_000, 75_000


def trained_on(bench: Bench, start: Checkpoint, seed: int) -> float:
    """Bits per byte after `MORE` tokens, in the order and by the schedule of a fresh model's."""
    tensors = {name: tensor.detach().clone() for name, tensor in start.tensors.items()}
    copied = LanguageModel.from_checkpoint(start.derive(tensors=tensors))
    config = TrainConfig(tokens=MORE, batch_size=32, seq_len=64, lr=4e-3, seed=seed + 1000)
    with tempfile.TemporaryDirectory() as folder:
        done = train(copied, bench.data, config, folder)
    return bench.evaluate(done.model).mean


def upcycled(start: Checkpoint, seed: int, reinitialise: float) -> Checkpoint:
    """The dense model as a mixture, this share of each expert's units drawn anew."""
    config = Config(reinitialise=reinitialise)
    return upcycle(start, config, generator(seed, "upcycle"))


def measure(bench: Bench, seed: int) -> tuple[float, float, float, float]:
    """Bits per byte of (upcycled, fresh, half drawn anew, dense)."""
    short = bench.train(dense(bench, 64), seed, tokens=TOKENS)
    start = short.model.to_checkpoint()
    whole, half = upcycled(start, seed, 0.0), upcycled(start, seed, 0.5)
    copies = trained_on(bench, whole, seed)
    renewed = trained_on(bench, half, seed)
    longer = trained_on(bench, start, seed)
    fresh = bench.train(bench.arch(), seed + 1000, tokens=MORE)
    return copies, fresh.bits_per_byte, renewed, longer


def claim(bench: Bench) -> Evidence:
    """Bits per byte of the upcycled mixture against a fresh one."""
    copies, fresh, renewed, longer = columns(measure(bench, seed) for seed in bench.seeds)
    as_good = no_worse(copies, longer, 0.0)
    evidence = weigh("An upcycled mixture beats a fresh one after equal tokens.", BITS, copies, fresh)
    return provided(evidence, as_good, "The dense model trained on is better.",
                    half_drawn_anew=renewed, dense_trained_on=longer)
