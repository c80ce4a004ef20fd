"""Offsite tuning: ends tuned around an emulator, put back around the whole middle, do better than whole or emulator.

Paper: Offsite-Tuning: Transfer Learning without Full Model.
Tried: a decoder of five layers trained on three tasks on strings, its middle of three thinned to one layer and
distilled for 40 steps; its ends tuned in the emulator for 60 steps to the same tasks under one another's names.
Cross-entropy of answers in nats of the network with the tuned ends plugged in, against the network as it was. Beside:
the emulator with them, and the same ends tuned in the whole network. Against it: a loss that is no lower, or none lower
than the emulator's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from mixwell.adapters.protocols.offsite import Config, distilled, offsite, plugged, trained
from mixwell.claims.adapters._losses import nats
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.claims.strings import KNOWN, Rows, drawn, fitted, model
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.rng import generator
from mixwell.lm.model import LanguageModel

LAYERS, OWN = 5, Config(ends=1, middle=1)
RENAMED = ("next", "mirror", "copy")
LR = 3e-3


def batches(seed: int, name: str, names: tuple[str, ...], count: int) -> Iterator[Rows]:
    """Rows of tasks."""
    draws = generator(seed, name)
    for _ in range(count):
        yield drawn(names, 32, draws)


@functools.cache
def emulated(seed: int) -> tuple[Checkpoint, Checkpoint]:
    """(the network, its distilled emulator)."""
    whole = fitted(model(seed, num_layers=LAYERS), batches(seed, "known", KNOWN, 150), 5e-3)
    checkpoint = whole.to_checkpoint()
    small = LanguageModel.from_checkpoint(offsite(checkpoint, OWN))
    texts = [rows.tokens for rows in batches(seed, "texts", KNOWN, 40)]
    distilled(whole, small, texts, OWN, lr=3e-3)
    return checkpoint, small.to_checkpoint()


def ends_tuned(start: Checkpoint, seed: int) -> LanguageModel:
    """A network with its ends tuned to the renamed tasks."""
    network = LanguageModel.from_checkpoint(start)
    named = dict(network.named_parameters())
    count = len(network.layers)
    own = trained(list(named), count, OWN)
    network.requires_grad_(False)
    for name in own:
        named[name].requires_grad_(True)
    rows = batches(seed, "renamed", RENAMED, 60)
    tuned: LanguageModel = fitted(network, rows, LR)
    return tuned


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Losses of the four."""
    whole, small = emulated(seed)
    emulator = ends_tuned(small, seed)
    joined = plugged(whole, emulator.to_checkpoint(), OWN)
    networks = {
        "method": LanguageModel.from_checkpoint(joined),
        "baseline": LanguageModel.from_checkpoint(whole),
        "emulator": emulator,
        "inside": ends_tuned(whole, seed),
    }
    test = drawn(RENAMED, 512, generator(seed, "test"))
    return {name: nats(network, test) for name, network in networks.items()}


CLAIM = Claim("Ends tuned around an emulator serve the whole network.", "nats a letter",
              provided=(Comparison(baseline="emulator"),))
