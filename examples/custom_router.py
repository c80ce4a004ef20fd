"""A router of your own in a script, inside the library's layer. `mixwell new` makes a method of the catalogue of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixwell.core.routing import Context, Routing
from mixwell.experts.layers.moe import Config as MoEConfig
from mixwell.experts.layers.moe import MoE
from mixwell.experts.routers._parts import LinearRouter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the runner-up router."""

    k: int = 1  # experts per token


class RunnerUp(LinearRouter):
    """Each token goes to the expert that scores second: whoever shines least is asked."""

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        logits_TE = self.logits(x_TD)
        scores_TE = logits_TE.softmax(-1)
        indices_TK = scores_TE.topk(2, dim=-1).indices[:, 1:]
        return Routing(indices_TK, scores_TE.gather(1, indices_TK), scores_TE, logits_TE)


generator = torch.Generator().manual_seed(0)
layer = MoE(16, MoEConfig(num_experts=4, hidden_dim=32), generator)
layer.router = RunnerUp(16, 4, Config(), generator)

x_TD = torch.randn(64, 16, generator=generator)
mixed = layer(x_TD, Context())
best_T = mixed.routing.scores_TE.argmax(-1)
(mixed.y_TD - x_TD).square().mean().backward()
print(f"tokens sent to their best expert: {int((mixed.routing.indices_TK[:, 0] == best_T).sum())} of {len(x_TD)}")
print(f"the router still learns: gradient norm {layer.router.weight.grad.norm():.1e}")
