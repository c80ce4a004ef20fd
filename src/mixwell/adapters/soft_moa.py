"""Soft mixture of adapters: thin adapters on slots that mix all tokens of a row, beside a frozen block.

**Equation:** L_ts = <x_t, phi_s>;  D = softmax_t(L), C = softmax_s(L);  z_s = A_e(s)(sum_t D_ts x_t);
    y_t = F(x_t) + sum_s C_ts z_s, F the frozen block, A_e(z) = U_e gelu(V_e z + b_e) + c_e, over E p slots, p of each.
**Shapes:** x [T, D], T = B S; slots (phi) [E p, D]; down (V) [E, R, D]; up (U) [E, D, R]; biases [E, R] and [E, D].
**Reference:** Cappellazzo et al. 2024, Efficient Fine-tuning of Audio Spectrogram Transformers via Soft Mixture of
    Adapters (2402.00828).
**Differs:** only U and the biases start at zero: with V at zero as well, as released, nothing but c would ever move.
    V starts uniform within 1 / sqrt(D). The norm before the block stays frozen unless `trained` names it. Padding has
    no part in any slot and gets nothing.
**Fails when:** used in an autoregressive model: every token's result holds every later token.
**Cost:** 4 B E p D R for the adapters whatever the length; 6 T D E p for slots, mixing and handing back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.adapters._parts import LayerAdapter, thin_pair
from mixwell.adapters._routed import check_width, width_of
from mixwell.adapters.targets import Target
from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers.soft_moe import mixing
from mixwell.experts.layers.swiglu import Config as Block
from mixwell.experts.layers.swiglu import SwiGLU
from mixwell.kernels.norm import wide
from mixwell.mixing import Mixed, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the soft mixture of adapters."""

    num_experts: int = 7  # E
    slots_per_expert: int = 1  # p
    rank: int = 6  # R, hidden width of an adapter

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, slots_per_expert=1, rank=1)


@method(
    title="Soft mixture of adapters",
    paper="Efficient Fine-tuning of Audio Spectrogram Transformers via Soft Mixture of Adapters",
    year=2024,
)
class SoftMoA(LayerAdapter):
    """Adapters on soft slots; see the module's card."""

    targets = ("channel_mixer",)
    config: Config

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        width = width_of(target)
        experts, rank = config.num_experts, config.rank
        check_width(rank, width, target)
        fans = config.slots_per_expert * (experts + width)
        self.slots = normal_parameter((experts * config.slots_per_expert, width), generator, (2 / fans) ** 0.5)
        self.down, self.up = thin_pair((experts,), width, width, rank, generator)
        self.down_bias = nn.Parameter(self.down.new_zeros(experts, rank))
        self.up_bias = nn.Parameter(self.down.new_zeros(experts, width))

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]; rows of `context.batch_shape` do not see each other; without it all tokens are one row."""
        mixed: Mixed = self.base(x_TD, context)
        tokens = len(x_TD)
        if not tokens:
            return mixed
        shape = context.batch_shape or (1, tokens)
        mask = context.mask_T
        if mask is None:
            mask = torch.ones(tokens, dtype=torch.bool, device=x_TD.device)
        x_BSD = wide(x_TD).view(*shape, -1)
        phi = self.slots.to(x_BSD.dtype)
        logits = x_BSD @ phi.T
        real = mask.view(shape)
        dispatch, combine = mixing(logits, real)
        slots = dispatch.mT @ x_BSD
        more = combine @ self.adapted(slots)
        flat = more.flatten(0, 1).to(mixed.y_TD.dtype)
        return mixed._replace(y_TD=mixed.y_TD + flat)

    def adapted(self, slots_BPD: Tensor) -> Tensor:
        """Each adapter on its own slots: [B, P, D] -> [B, P, D]."""
        parts = self.down, self.down_bias, self.up, self.up_bias
        down, down_bias, up, up_bias = (part.to(slots_BPD.dtype) for part in parts)
        slots = slots_BPD.unflatten(1, (self.config.num_experts, -1))
        into = torch.einsum("bepd,erd->bepr", slots, down)
        hidden = F.gelu(into + down_bias[:, None])
        out = torch.einsum("bepr,edr->bepd", hidden, up)
        done = out + up_bias[:, None]
        return done.flatten(1, 2)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Three adapters of two slots at a block of width six."""
    owner = SwiGLU(6, Block(hidden_dim=5), generator)
    config = Config(num_experts=3, slots_per_expert=2, rank=2)
    return {"target": Target("channel_mixer", owner), "config": config}
