"""Generations that learn from generated text lose rare words, and a tenth of real text in each keeps many of them.

Paper: Model Dementia: Generated Data Makes Models Forget.
Tried: 5,000 words of shares 1/i, counted in 20,000 draws, twenty generations; the share of the words with three draws
or fewer in the first generation that the last one still has. Baseline: with a tenth of real draws. Against it: chains
without real draws that keep half as many or more.
"""

from __future__ import annotations

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.rng import generator
from mixwell.data.generations import Config, words

CLAIM = Claim("Generated text makes models forget rare words.", "share of rare words kept", at_least=0.5, relative=True)
WORDS, DRAWS, GENERATIONS, RARE = 5000, 20_000, 20, 3


def kept(seed: int, real: float) -> float:
    """Share of the rare words of the first generation that the last one has."""
    place_V = torch.arange(1, WORDS + 1, dtype=torch.float64)
    share_V = 1 / place_V
    config = Config(samples=DRAWS, generations=GENERATIONS, real=real)
    share_V = share_V / share_V.sum()
    draws = generator(seed, "generations")
    found = words(share_V, config, draws)
    first_V = (DRAWS * found[1]).round()
    rare_V = (first_V > 0) & (first_V <= RARE)
    last_V = found[-1] > 0
    kept_R = last_V[rare_V].double()
    return float(kept_R.mean())


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Without real draws and with a tenth."""
    return {"method": kept(seed, 0.0), "baseline": kept(seed, 0.1)}
