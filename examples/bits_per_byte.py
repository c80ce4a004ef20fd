"""Text to tokens, a small mixture trained on it, and its bits per byte on text that it has not seen."""

import tempfile
from pathlib import Path

import torch

from mixwell.lm.config import ModelConfig
from mixwell.lm.data import write_shards
from mixwell.lm.documents import Document
from mixwell.lm.evaluate import evaluate
from mixwell.lm.model import LanguageModel
from mixwell.lm.splitting import split_documents
from mixwell.lm.tokenizer import Tokenizer
from mixwell.lm.training.loop import TrainConfig, train

DOMAINS = {
    "sums": [Document(f"sums{i}", f"{i} + {i + 1} = {2 * i + 1}\n" * 4) for i in range(120)],
    "words": [Document(f"words{i}", f"the {a} saw the {b}\n" * 6)
              for i, (a, b) in enumerate((a, b) for a in ("cat", "dog", "cow", "hen") for b in ("fox", "owl", "rat"))],
}
tokenizer = Tokenizer.train((d.text for documents in DOMAINS.values() for d in documents), vocab_size=300)
mixer = {"method": "experts.layers.moe", "num_experts": 4, "hidden_dim": 32, "router": {"method": "top_k", "k": 2}}
config = ModelConfig(vocab_size=tokenizer.vocab_size, dim=32, num_layers=2, num_heads=4, channel_mixer=mixer)
model = LanguageModel(config, torch.Generator().manual_seed(0))

with tempfile.TemporaryDirectory() as scratch:
    splits = {name: split_documents(documents) for name, documents in DOMAINS.items()}
    data = write_shards(Path(scratch) / "tokens", splits, tokenizer)
    untrained = evaluate(model, data, seq_len=32)
    done = train(model, data, TrainConfig(tokens=10_000, batch_size=16, seq_len=32, lr=1e-2), Path(scratch) / "run")
    trained = evaluate(done.model, data, seq_len=32)

for name in data.domains:
    print(f"{name:<6} {untrained.bits_per_byte[name]:.2f} -> {trained.bits_per_byte[name]:.2f} bits per byte; "
          f"experts of layer 0 {[round(share, 2) for share in trained.load['0'][name]]}")
print(f"mean over the domains: {untrained.mean:.2f} -> {trained.mean:.2f}")
