"""A model saved as a Hugging Face folder and loaded again: the same logits, its lineage kept."""

import tempfile
from pathlib import Path

import torch

import mixwell
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel

mixer = {"method": "experts.layers.moe", "num_experts": 4, "hidden_dim": 48, "router": {"method": "top_k", "k": 2}}
config = ModelConfig(vocab_size=256, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, channel_mixer=mixer)
model = LanguageModel(config, torch.Generator().manual_seed(0))
tokens_BT = torch.arange(12).view(1, 12)

with tempfile.TemporaryDirectory() as scratch:
    folder = model.save(Path(scratch) / "mixtral")  # AutoModelForCausalLM.from_pretrained reads it, too
    print("files:", ", ".join(sorted(path.name for path in folder.iterdir())))
    again = mixwell.load(folder, dtype=torch.float32)

with torch.no_grad():
    apart = (again(tokens_BT).logits_BTV - model.eval()(tokens_BT).logits_BTV).abs().max()
print(f"largest difference of a logit after the round trip: {float(apart):.1e}")
print(f"{model.num_parameters():,} parameters, {model.num_parameters(active=True):,} active for a token")
print("greedy continuation:", again.generate(tokens_BT, 5, do_sample=False)[0, -5:].tolist())
