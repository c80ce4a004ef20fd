"""MaskMoE: showing a rare token id one fixed expert only lets that expert learn it better.

Paper: MaskMoE: Boosting Token-Level Learning via Routing Mask in Mixture-of-Experts.
Tried: 512 token ids of Zipf's frequencies, each with a value to be recalled from a noisy embedding; one of
eight experts. Masked top-1 with the Switch loss against a balanced hash of the id, which is told the id as the mask is;
a free top-1 beside. Error on ids outside the frequent 60 % of the tokens. Against it: an error on rare ids that is no
lower than the hash's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._synthetic import BALANCED, DIM, FINE, TOP1, Batch, Draw, build, fit, test
from mixwell.core.rng import generator

IDS = 512
SHARES = 1 / torch.arange(1, IDS + 1)
RARE = int((SHARES.cumsum(0) < 0.6 * SHARES.sum()).sum()) + 1  # the first id that is not frequent


def recall(seed: int) -> Draw:
    """Tokens with noisy embeddings; the target is the id's value."""
    draws = generator(seed, "ids")
    embeddings = torch.randn(IDS, DIM, generator=draws)
    values = torch.randn(IDS, DIM, generator=draws)

    def draw(count: int, draws: torch.Generator) -> Batch:
        ids = torch.multinomial(SHARES, count, replacement=True, generator=draws)
        noise = 0.5 * torch.randn(count, DIM, generator=draws)
        return Batch(embeddings[ids] + noise, values[ids], ids)

    return draw


def measure(bench: Bench, seed: int, *, lr: float, **spec: Any) -> float:
    """Error on rare ids."""
    draw = recall(seed)
    layer = build(seed, spec, problem=draw)
    fit(layer, draw, seed, lr=lr)
    batch, mixed = test(layer, draw, seed, 16384)
    rare = batch.labels_T >= RARE
    found, wanted = mixed.y_TD[rare], batch.y_TD[rare]
    error = nn.functional.mse_loss(found, wanted)
    return float(error)


KNOWN = {"vocab_size": IDS, "frequencies": tuple(SHARES.tolist())}
MASKED = {**TOP1, "router": {"method": "masked", **KNOWN}}
HASHED = {"router": {"method": "hash", **KNOWN}, "balance": {}}

CLAIM = Claim(
    "One fixed expert for rare ids, and a choice for frequent ones, learns rare ids better than a hash of all.",
    "squared error on rare token ids, share of variance",
    sides={"method": Side(measure, MASKED, BALANCED), "baseline": Side(measure, HASHED, FINE),
           "free": Side(measure, TOP1, BALANCED)})
