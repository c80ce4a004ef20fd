"""Soft mixture of experts: every slot of every expert is a weighted mean of all tokens of the sequence.

**Equation:** L_ts = g <x_t / |x_t|, phi_s / |phi_s|>;  D = softmax_t(L), C = softmax_s(L);
    z_s = E_e(s)(sum_t D_ts x_t);  y_t = sum_s C_ts z_s, over E p slots s, p of each expert.
**Shapes:** x [T, D], T = B S; slots.weight (phi) [E p, D]; gate_up_proj [E, 2 F, D]; down_proj [E, D, F].
**Reference:** Puigcerver et al. 2023, From Sparse to Soft Mixtures of Experts (2308.00951), section 2 and algorithm 2.
**Differs:** SwiGLU experts; from memory of the paper. Padding has no part in any slot and gets zeros. phi starts normal
    with std 1 / sqrt(D), experts with 0.02.
**Fails when:** used in an autoregressive model: every token's result holds every later token.
**Cost:** 6 B E p D F FLOPs for the experts whatever the length, 6 T D E p for slots, mixing and handing back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers._parts import ChannelMixer, Gate
from mixwell.kernels.experts import expert_mlp
from mixwell.kernels.norm import wide
from mixwell.kernels.packing import weight_of
from mixwell.mixing import Mixed, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the soft mixture."""

    num_experts: int  # E
    hidden_dim: int  # F, of each expert
    slots_per_expert: int = 1  # p
    normalise: bool = True  # tokens and slots enter the logits at length 1, times a learned scale g that starts at 1
    max_positions: int = 256  # sequence length for which FLOPs are counted: the slots cost the same at every length

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, hidden_dim=1, slots_per_expert=1, max_positions=1)

    @property
    def slots(self) -> int:
        """E p."""
        return self.num_experts * self.slots_per_expert


def mixing(logits_BSP: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
    """(dispatch, combine) weights [B, S, P]: softmax over the row's real tokens, and over slots; 0 for padding."""
    real = mask_BS.unsqueeze(-1)
    lowest = torch.finfo(logits_BSP.dtype).min
    masked = logits_BSP.masked_fill(~real, lowest)
    over_tokens = masked.softmax(1)
    over_slots = logits_BSP.softmax(2)
    return over_tokens * real, over_slots * real


@method(
    title="Soft mixture of experts",
    paper="From Sparse to Soft Mixtures of Experts",
    year=2023,
    tags={"non-causal"},
)
class SoftMoE(ChannelMixer):
    """Experts on slots that mix all tokens of a row; see the module's card."""

    config: Config
    packable = ("gate_up_proj", "down_proj")

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        experts = config.num_experts
        hidden = config.hidden_dim
        self.slots = Gate(dim, config.slots, generator, std=dim**-0.5)
        if config.normalise:
            self.sharpness = nn.Parameter(self.slots.weight.new_ones(()))
        self.gate_up_proj = normal_parameter((experts, 2 * hidden, dim), generator)
        self.down_proj = normal_parameter((experts, dim, hidden), generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]; rows of `context.batch_shape` do not see each other; without it all tokens are one row."""
        tokens = len(x_TD)
        if not tokens:
            return Mixed(x_TD.clone())
        shape = context.batch_shape or (1, tokens)
        mask = context.mask_T
        if mask is None:
            mask = x_TD.new_ones(tokens, dtype=torch.bool)
        x_BSD = x_TD.view(*shape, -1)
        logits = self.logits(x_TD)
        logits = logits.view(*shape, -1)
        dispatch, combine = mixing(logits, mask.view(shape))
        dispatch = dispatch.to(x_BSD.dtype)
        slots = torch.bmm(dispatch.transpose(1, 2), x_BSD)
        out_of_slots = combine.to(x_BSD.dtype)
        y = torch.bmm(out_of_slots, self.experts(slots))
        return Mixed(y.flatten(0, 1))

    def logits(self, x_TD: Tensor) -> Tensor:
        """[T, P] in float32 or better."""
        if not self.config.normalise:
            return self.slots(x_TD)
        x = F.normalize(wide(x_TD), dim=-1)
        slots = self.slots.weight.to(x.dtype)
        slots = F.normalize(slots, dim=-1)
        cosines = F.linear(x, slots)
        return self.sharpness.to(x.dtype) * cosines

    def experts(self, slots_BPD: Tensor) -> Tensor:
        """Each expert on its own slots: [B, P, D] -> [B, P, D]."""
        rows = len(slots_BPD)
        E = self.config.num_experts
        p = self.config.slots_per_expert
        by_expert = slots_BPD.unflatten(1, (E, p)).transpose(0, 1)
        flat = by_expert.reshape(E * rows * p, -1)
        counts = torch.full((E,), rows * p, device=flat.device)
        gate_up = weight_of(self, "gate_up_proj")
        out = expert_mlp(flat, counts, gate_up, weight_of(self, "down_proj"))
        by_row = out.view(E, rows, p, -1).transpose(0, 1)
        return by_row.flatten(1, 2)

    def flops_per_token(self) -> float:
        """6 D F P / S for the experts at rows of S = max_positions tokens, 6 D P for slots, mixing, handing back."""
        c = self.config
        each = c.hidden_dim / c.max_positions + 1
        return 6.0 * self.dim * c.slots * each


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two rows of four tokens of width six, three experts of two slots."""
    config = Config(num_experts=3, hidden_dim=5, slots_per_expert=2, max_positions=4)
    x_TD = torch.randn(8, 6, generator=generator)
    context = Context(batch_shape=(2, 4))
    return {"dim": 6, "config": config, "x_TD": x_TD, "context": context}
