"""Compressor: under one limit of bytes the sizes of most work a token learn better than sizes drawn at random.

Paper: Compressing Pre-trained Models of Code into 3 MB.
Tried: decoders of the bench's vocabulary within 120 kB in two bytes a weight, trained on 60,000 tokens of the standard
library; those of the genetic search against those drawn until one is within 5 % of the limit; three learning rates
each. Both learn from the text itself: distillation is not tried here.
Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mixwell.claims.bench import VOCAB_SIZE, Bench
from mixwell.claims.claim import Claim, Side
from mixwell.core.rng import generator
from mixwell.precision.sparse.compressor import Config, Sizes, compressor, values_of

TOKENS = 60_000
NEAR = 0.95  # of the limit
CONFIG = Config(limit_bytes=120_000, vocab_size=(VOCAB_SIZE, VOCAB_SIZE, 1), dim=(16, 64, 8), hidden_dim=(16, 256, 16),
                layers=(1, 6, 1), length=64, generations=40)


def searched(bench: Bench, seed: int, lr: float) -> float:
    """Bits per byte of the search's sizes."""
    found = compressor(CONFIG, generator(seed, "compressor"))
    return _learnt(bench, found.sizes, seed, lr)


def at_random(bench: Bench, seed: int, lr: float) -> float:
    """Bits per byte of sizes near the limit."""
    every = _drawn(generator(seed, "sizes"))
    return _learnt(bench, next(every), seed, lr)


def _drawn(draws: torch.Generator) -> Iterator[Sizes]:
    values = values_of(CONFIG)
    while True:
        places = [int(torch.randint(len(own), (), generator=draws)) for own in values]
        genes = [own[place] for own, place in zip(values, places)]
        sizes = Sizes(*genes)
        share = sizes.parameters(True) * CONFIG.bytes_per_weight / CONFIG.limit_bytes
        if sizes.fits() and NEAR <= share <= 1:
            yield sizes


def _learnt(bench: Bench, sizes: Sizes, seed: int, lr: float) -> float:
    arch = sizes.arch(True)
    done = bench.train(arch, seed, tokens=TOKENS, lr=lr)
    return done.bits_per_byte


CLAIM = Claim("The most work within a limit learns better than sizes at random.", "bits per byte", sides={
    "method": Side(searched, grid={"lr": (4e-3, 8e-3, 16e-3)}),
    "baseline": Side(at_random, grid={"lr": (4e-3, 8e-3, 16e-3)})})
