"""A small model whose attention is sharp enough that it matters what is kept, and weights and keys of a prompt."""

import torch

from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.serve.keeping.rules import Kept

BLOCK = {"method": "experts.layers.swiglu", "hidden_dim": 16}


def small(**options):
    """Two layers of four heads, two of keys, in float64."""
    given = {"vocab_size": 40, "dim": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "max_positions": 128,
             "channel_mixer": BLOCK} | options
    model = LanguageModel(ModelConfig(**given), generator(0)).cast(torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def prompt(length=12, seed=2):
    """Causal weights [1, 2, T, T] and what is kept, [1, 2, T, 4]."""
    draws = generator(seed)
    logits = 2 * torch.randn(1, 2, length, length, generator=draws, dtype=torch.float64)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = logits.masked_fill(later, -torch.inf).softmax(-1)
    kept = [torch.randn(1, 2, length, 4, generator=draws, dtype=torch.float64) for _ in range(2)]
    return weights, Kept(*kept)
