"""MaskMoE: showing a rare token id one fixed expert only lets that expert learn it better.

Paper: MaskMoE: Boosting Token-Level Learning via Routing Mask in Mixture-of-Experts.
Tried: 512 token ids of Zipf's frequencies, each with a value to be recalled from a noisy embedding; top-1 of eight
experts with the Switch loss, masked against free. Error on ids outside the frequent 60 % of the tokens.
Against it: an error on rare ids that is no lower.
"""

from __future__ import annotations

import torch
from torch import nn

from mixwell.claims._series import by_seed
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import DIM, TOP1, Batch, Draw, build, fit, test
from mixwell.core.evidence import Evidence, weigh
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


def measure(seed: int, mask: bool) -> float:
    """Error on rare ids."""
    draw, spec = recall(seed), dict(TOP1)
    if mask:
        frequencies = tuple(SHARES.tolist())
        spec["router"] = {"method": "masked", "vocab_size": IDS, "frequencies": frequencies}
    layer = build(seed, spec)
    fit(layer, draw, seed)
    batch, mixed = test(layer, draw, seed, 16384)
    rare = batch.labels_T >= RARE
    found, wanted = mixed.y_TD[rare], batch.y_TD[rare]
    return float(nn.functional.mse_loss(found, wanted))


def claim(bench: Bench) -> Evidence:
    """Error on rare ids with and without the mask."""
    masked = by_seed(bench, measure, True)
    free = by_seed(bench, measure, False)
    return weigh("One fixed expert for rare ids learns them better.",
                 "squared error on rare token ids, share of variance", masked, free)
