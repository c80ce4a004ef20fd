"""Four routers in the same layer, on the same data, for the same steps: held-out error and evenness."""

import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.moe import Config, MoE

DIM, CLUSTERS, STEPS = 16, 6, 80


def batch(generator):
    """Rows from six clusters [T, D]; each cluster has a linear map of its own, which the layer must learn."""
    world = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(CLUSTERS, DIM, generator=world)
    maps = torch.randn(CLUSTERS, DIM, DIM, generator=world) / DIM**0.5
    which = torch.randint(CLUSTERS, (256,), generator=generator)
    x_TD = centres[which] + torch.randn(256, DIM, generator=generator)
    return x_TD, torch.einsum("td,tde->te", x_TD, maps[which])


def error(router):
    """Held-out squared error as a share of the targets' variance, and the busiest expert's load over the mean."""
    generator = torch.Generator().manual_seed(0)
    layer = MoE(DIM, Config(num_experts=CLUSTERS, hidden_dim=32, router=router), generator)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for step in range(STEPS):
        x_TD, target_TD = batch(generator)
        mixed = layer(x_TD, Context(step=step, generator=generator))
        loss = (mixed.y_TD - target_TD).square().mean() + mixed.aux
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x_TD, target_TD = batch(torch.Generator().manual_seed(2))
    with torch.no_grad():
        mixed = layer.eval()(x_TD, Context())
    load_E = mixed.routing.load_E().double()
    left = (mixed.y_TD - target_TD).square().mean() / target_TD.var()
    return left.item(), (load_E.max() / load_E.mean()).item()


for router in ({"method": "top_k", "k": 1}, {"method": "sinkhorn", "k": 1}, {"method": "expert_choice"},
               {"method": "cosine", "k": 1}):
    left, uneven = error(router)
    print(f"{router['method']:<14} error {left:.3f}   busiest expert {uneven:.2f} times the mean")
print("One seed says little: `mixwell compare` runs several, with intervals, on your own text.")
