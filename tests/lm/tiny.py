"""The smallest language model and token data that training can be tried on."""

from pathlib import Path

from mixwell.core.rng import generator
from mixwell.lm.config import ModelConfig
from mixwell.lm.data import TokenData, write_shards
from mixwell.lm.documents import Document
from mixwell.lm.model import LanguageModel
from mixwell.lm.splitting import split_documents
from mixwell.lm.tokenizer import Tokenizer
from mixwell.lm.training.loop import TrainConfig, TrainResult, train

TEXTS = {
    "sums": [f"{i} + {i + 1} = {2 * i + 1}\n" * 4 for i in range(60)],
    "words": [f"the {a} saw the {b} and the {b} saw the {a}\n" * 2 for a in ("cat", "dog", "cow", "hen")
              for b in ("fox", "owl", "pig", "rat")],
}
MOE = {"method": "experts.layers.moe", "num_experts": 3, "hidden_dim": 8, "router": {"method": "top_k", "k": 2}}
DENSE = {"method": "experts.layers.swiglu", "hidden_dim": 8}


def tiny_data(folder: Path) -> TokenData:
    """Two domains as tokens."""
    splits = {name: split_documents([Document(f"{i}.txt", t) for i, t in enumerate(texts)])
              for name, texts in TEXTS.items()}
    return write_shards(folder, splits, Tokenizer.train((t for texts in TEXTS.values() for t in texts), 270))


def tiny_model(vocab_size: int = 270, layers: tuple = (DENSE, MOE)) -> LanguageModel:
    """Two layers, a dense one and a sparse one."""
    config = ModelConfig(vocab_size=vocab_size, dim=8, num_layers=len(layers), num_heads=2, channel_mixer=layers)
    return LanguageModel(config, generator(3))


def tiny_config(**options) -> TrainConfig:
    """Twelve steps of 4 windows of 8 tokens, unless told otherwise."""
    return TrainConfig(**{"tokens": 12 * 32, "batch_size": 4, "seq_len": 8, "log_every": 5, "save_every": 3,
                          "save_every_s": 0.0, "lr": 0.01} | options)


def run(data: TokenData, folder: Path, **options) -> TrainResult:
    """Train the tiny model."""
    return train(tiny_model(), data, tiny_config(**options), folder)
