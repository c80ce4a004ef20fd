"""Small whole models and text for conversions to be tried on."""

import torch

from mixwell.convert._parts import dense_example, sparse_example
from mixwell.core.checkpoint import channel_mixers
from mixwell.core.rng import generator as seeded
from mixwell.core.routing import Context
from mixwell.lm.calibration import TextCalibration
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel

VOCAB = 13


def whole(checkpoint):
    """A checkpoint's channel mixers in a model that runs; what else it has is drawn."""
    arch = {"vocab_size": VOCAB, "num_heads": 2, "head_dim": 4, "max_positions": 64} | dict(checkpoint.arch)
    model = LanguageModel(ModelConfig(**arch), seeded(5))
    made = model.to_checkpoint()
    return made.derive(tensors={**made.tensors, **checkpoint.tensors})


def dense_model(generator, hidden=8):
    return whole(dense_example(generator, hidden))


def sparse_model(generator, num_experts=4):
    return whole(sparse_example(generator, num_experts))


def calibration(rows=6, length=12, domains=2, models=None):
    tokens = torch.randint(0, VOCAB, (rows, length), generator=seeded(9))
    labels = torch.arange(rows) % domains
    return TextCalibration(tokens, labels, domains, models)


def mixer(checkpoint, layer):
    """The channel mixer of a layer as a module in float64."""
    model = LanguageModel.from_checkpoint(checkpoint, dtype=torch.float64).eval()
    return model.layers[layer].channel_mixer


def output(checkpoint, layer, x_TD):
    """What a layer's channel mixer makes of x [T, D], float64."""
    return mixer(checkpoint, layer)(x_TD.double(), Context()).y_TD


def spec(checkpoint, layer):
    return channel_mixers(checkpoint.arch)[layer]


def silu(x):
    return x / (1 + torch.exp(-x))


def block(gate_up, down, x_D):
    """One token through one SwiGLU block, unit by unit, float64."""
    hidden = down.shape[1]
    y = torch.zeros(down.shape[0], dtype=torch.float64)
    for i in range(hidden):
        gate = (gate_up[i].double() * x_D.double()).sum()
        up = (gate_up[hidden + i].double() * x_D.double()).sum()
        y += silu(gate) * up * down[:, i].double()
    return y


def logits(checkpoint, tokens):
    model = LanguageModel.from_checkpoint(checkpoint, dtype=torch.float64).eval()
    with torch.no_grad():
        return model(tokens).logits_BTV
