"""Small models that adapters stand beside."""

import functools

import torch

from mixwell.core.rng import generator as seeded
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel

VOCAB = 40
DENSE = {"method": "swiglu", "hidden_dim": 24}
SPARSE = {"method": "moe", "num_experts": 4, "hidden_dim": 24, "router": {"method": "top_k", "k": 2},
          "shared_experts": 1}
TOKENS = torch.randint(0, VOCAB, (3, 17), generator=seeded(2))


def model(sparse=False, **changes):
    """Two layers of width 16, with biases in attention."""
    attention = {"method": "attention", "num_heads": 4, "bias": True}
    sizes = {"vocab_size": VOCAB, "dim": 16, "num_layers": 2, "num_heads": 4, "sequence_mixer": attention,
             "channel_mixer": SPARSE if sparse else DENSE}
    return LanguageModel(ModelConfig(**(sizes | changes)), seeded(1)).eval()


@functools.cache
def bare(sparse):
    """The model that nobody changes, and what it says."""
    network = model(sparse)
    return network, logits(network)


def moved(attached, seed=5, size=0.1):
    """Whatever the adapter trains, moved as if it had been trained."""
    draws = seeded(seed)
    with torch.no_grad():
        for parameter in attached.model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=draws)
    return attached


def logits(network):
    with torch.no_grad():
        return network(TOKENS).logits_BTV


def states(network):
    return {name: value.clone() for name, value in network.state_dict().items()}
