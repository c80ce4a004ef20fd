"""A mixture-of-experts layer alone, in a module of your own: outputs, losses, and where the tokens went."""

import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.moe import Config, MoE

generator = torch.Generator().manual_seed(0)
config = Config(num_experts=8, hidden_dim=64, router={"method": "top_k", "k": 2}, balance={"switch": 0.01},
                shared_experts=1)
layer = MoE(32, config, generator)
tokens_TD = torch.randn(256, 32, generator=generator)

mixed = layer(tokens_TD, Context())
loss = (mixed.y_TD - tokens_TD).square().mean() + mixed.aux  # your loss, and what the balance rules add
loss.backward()

losses = {name: round(value.item(), 3) for name, value in mixed.losses.items()}
share_E = mixed.routing.load_E() / mixed.routing.load_E().sum()
print(f"output {tuple(mixed.y_TD.shape)}, losses before their coefficients {losses}")
print("share of the slots by expert:", [round(float(s), 2) for s in share_E])
print(f"{layer.flops_per_token():,.0f} FLOPs a token forward; the router learns: {layer.router.weight.grad.norm():.2e}")
