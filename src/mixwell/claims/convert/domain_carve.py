"""Read-ME: with half of its units a model loses less where these are chosen by domain than where they are the same.

Paper: Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design.
Tried: the bench's dense model, width 256, as one expert for each of four domains, half of the units for each token, the
domain guessed from sixteen tokens; bits per byte right after, against the same from windows whose domain was drawn by
the dice, which is nearly one static mask. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

import torch

from mixwell.claims._conversions import bits, dense_start, made, text
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.rng import generator
from mixwell.lm.calibration import TextCalibration

CLAIM = Claim("Half of the units chosen by domain lose less than a static half.", BITS)
LOOKED_AT = 32768


def by_dice(bench: Bench, seed: int) -> TextCalibration:
    """The same windows, their domains drawn."""
    windows = torch.cat(list(text(bench, LOOKED_AT).batches))
    domains = len(bench.data.domains)
    draws = generator(seed, "domains")
    labels = torch.randint(0, domains, (len(windows),), generator=draws)
    return TextCalibration(windows, labels, domains)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte with half of the units by domain and by the dice."""
    before = dense_start(bench, seed)
    routed = made(bench, "domain_carve", before, seed, {}, looked_at=text(bench, LOOKED_AT))
    static = made(bench, "domain_carve", before, seed, {}, looked_at=by_dice(bench, seed))
    return {"method": bits(bench, routed), "baseline": bits(bench, static)}
