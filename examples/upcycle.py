"""A dense language model becomes a mixture of experts that computes the same function, and says so in a receipt."""

import torch

import mixwell
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel

config = ModelConfig(vocab_size=256, dim=32, num_layers=2, num_heads=4,
                     channel_mixer={"method": "experts.layers.swiglu", "hidden_dim": 64})
dense = LanguageModel(config, torch.Generator().manual_seed(0))  # or mixwell.load("a/hugging-face/folder")

sparse = mixwell.apply("convert.upcycle", dense, num_experts=4, router={"method": "top_k", "k": 2})

record = sparse.lineage[-1]
receipt = record["receipt"]
print(f"{record['method']}, measured on {record['tokens']} {record['measured_on']}")
print(f"largest logit error {receipt['max_logit_error']:.1e}, KL {receipt['kl_nats']:.1e} nats a token")
print(f"parameters {receipt['parameters_before']:,} -> {receipt['parameters_after']:,}")
print(f"promised: {receipt['promises']}, kept: {receipt['kept']}")
for layer, share_E in receipt["load_after"].items():
    print(f"layer {layer}: share of tokens by expert {[round(s, 2) for s in share_E]}")
