"""Small models to be served."""

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel
from mixwell.lm.streaming import Text
from mixwell.serve.engine import Engine, Limits
from mixwell.serve.request import Options, Row
from tests.lm.templates import byte_level

MOE = {"method": "experts.layers.moe", "num_experts": 3, "hidden_dim": 8, "router": {"method": "top_k", "k": 2}}
ATTENTION = {"method": "sequence.attention"}
LATENT = {"method": "sequence.latent_attention", "kv_rank": 6, "nope_dim": 4, "rope_dim": 4, "value_dim": 6}


def small_model(sequence_mixer=ATTENTION, channel_mixer=MOE, dtype=torch.float64, max_positions=96, **options):
    """Two layers; the float64 makes sums of another order agree to many digits."""
    tokenizer = byte_level("thinking")
    config = ModelConfig(vocab_size=tokenizer.vocab_size, dim=16, num_layers=2, num_heads=2,
                         max_positions=max_positions, sequence_mixer=sequence_mixer, channel_mixer=channel_mixer,
                         **options)
    model = LanguageModel(config, generator(3))
    with torch.no_grad():  # answers that hang on their prompts, rather than on the last token alone
        for parameter in model.parameters():
            parameter.mul_(4)
    model.tokenizer = tokenizer
    return model.cast(dtype).eval()


def row(model, prompt, most=12, **options):
    """A row that takes the likeliest ids, unless told otherwise."""
    given = {"max_tokens": most, "temperature": 0.0} | options
    found = Options(**given)
    return Row(list(prompt), found, Text(model.tokenizer, found.stop))


def engine(model, **limits):
    """An engine with little of everything."""
    return Engine(model, Limits(**{"step_tokens": 12, "max_rows": 4, "block": 4} | limits))


def finish(found, rows=()):
    """Run an engine until all is answered; returns the events."""
    for one in rows:
        found.submit(one)
    events = []
    while found.busy:
        events += found.step()
        found.pool.check()
    assert found.pool.used == 0
    return events


@pytest.fixture(scope="session")
def model():
    return small_model()
