"""Multi-head latent attention: keys and values of all heads come out of one narrow latent, which alone is cached.

**Equation:** c_s = norm(W_dkv x_s);  r_s = R(s) W_kr x_s;  [k_h; v_h]_s = W_ukv^h c_s;
    [q_h; p_h]_t = W_uq^h norm(W_dq x_t);
    a_hts = softmax_{s <= t} (scale (q_ht . k_hs + R(t) p_ht . r_s));  y_t = W_o [sum_s a_hts v_hs]_h.
**Shapes:** x [B, T, D]; kv_down.weight [C + R, D] holds W_dkv above W_kr; kv_up.weight [H (N + V), C], of each head
    keys above values; q_up.weight [H (N + R), Q], or q.weight [H (N + R), D] without a latent of the queries;
    out.weight [D, H V].
**Reference:** DeepSeek-V2 (2405.04434), eq. 9-19; DeepSeek-V3 (2412.19437), eq. 1-11.
**Differs:** turned pairs are (i, i + R/2); published checkpoints hold (2 i, 2 i + 1), which is the same but for the
    order of rows. A single position without gradient is computed in the latent space (W_uk moves to the query, W_uv
    behind the sum), which is the same in exact arithmetic. All maps start normal with std 0.02.
**Fails when:** the latent is narrower than what the heads must tell apart.
**Cost:** 2 T D (Q + C + R) + 2 T (Q H (N + R) + C H (N + V) + H V D) + 2 T S H (N + R + V) FLOPs forward (causal half
    counted); C + R numbers of cache a position, for all heads together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.kernels.attention import attend
from mixwell.kernels.cache import KVCache
from mixwell.kernels.linear import Linear
from mixwell.kernels.norm import RMSNorm
from mixwell.kernels.rope import attention_factor, check_rope_scaling, yarn_scale
from mixwell.kernels.rotary import rotary_angles, rotate
from mixwell.mixing import SequenceMixed, check_above
from mixwell.sequence._parts import SequenceMixer, positions_after


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of latent attention. A language model hands on the fields it shares by name."""

    num_heads: int  # H, at least 1
    kv_rank: int  # C, width of the latent of keys and values
    q_rank: int | None = None  # Q, width of the latent of queries; default: none, queries come from the token itself
    nope_dim: int  # N, channels of a head's keys that do not turn
    rope_dim: int  # R, channels that turn, shared by the heads' keys; even
    value_dim: int  # V, channels of a head's values
    rope_theta: float = 10000.0  # base of the rotary wavelengths, above 0
    rope_scaling: Mapping[str, Any] | None = None  # {"type": "yarn", ...}, see `kernels.rope`; None: as trained
    latent_eps: float = 1e-6  # of the latents' norms
    bias: bool = False  # on the maps into the latents and on the output

    def __post_init__(self) -> None:
        check_above(self, num_heads=0, kv_rank=0, q_rank=0, nope_dim=0, rope_dim=0, value_dim=0, rope_theta=0)
        if self.rope_dim % 2:
            raise ValueError(f"rope_dim is {self.rope_dim}; rotary positions turn pairs, so choose an even number")
        check_rope_scaling(self.rope_scaling)


def score_scale(config: Config) -> float:
    """1 / sqrt(N + R), larger for positions stretched by YaRN with `mscale_all_dim`."""
    width = config.nope_dim + config.rope_dim
    plain = width**-0.5
    scaling = config.rope_scaling or {}
    weight = scaling.get("mscale_all_dim")
    if not weight:
        return plain
    sharper = yarn_scale(scaling["factor"], weight)
    return plain * sharper**2


@method(
    title="Multi-head latent attention",
    paper=("DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
           "DeepSeek-V3 Technical Report"),
    year=2024,
    tags={"positions"},
)
class LatentAttention(SequenceMixer):
    """Multi-head latent attention; see the module's card."""

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = c = config
        queried = c.nope_dim + c.rope_dim
        q_rows = c.num_heads * queried
        kept = c.kv_rank + c.rope_dim
        kv_rows = c.num_heads * (c.nope_dim + c.value_dim)
        if c.q_rank is None:
            self.q = Linear(dim, q_rows, False, generator)
        else:
            self.q_down = Linear(dim, c.q_rank, c.bias, generator)
            self.q_norm = RMSNorm(c.q_rank, c.latent_eps)
            self.q_up = Linear(c.q_rank, q_rows, False, generator)
        self.kv_down = Linear(dim, kept, c.bias, generator)
        self.kv_norm = RMSNorm(c.kv_rank, c.latent_eps)
        self.kv_up = Linear(c.kv_rank, kv_rows, False, generator)
        self.out = Linear(c.num_heads * c.value_dim, dim, c.bias, generator)
        self.scale = score_scale(config)
        factor = attention_factor(config.rope_scaling)
        self.stretch = factor**2  # of turned queries and turned keys, laid on the queries

    def new_cache(self) -> KVCache:
        """An empty cache for `forward`."""
        return KVCache()

    def forward(self, x_BTD: Tensor, positions_BT: Tensor | None = None, cache: KVCache | None = None,
                mask_BT: Tensor | None = None, context: Context | None = None) -> SequenceMixed:
        """[B, T, D] -> [B, T, D]; see `SequenceMixer`. The context is not read."""
        B, T, _ = x_BTD.shape
        if positions_BT is None:
            positions_BT = positions_after(cache, x_BTD)
        c = self.config
        angles = rotary_angles(positions_BT, c.rope_dim, c.rope_theta, c.rope_scaling)
        q_BHTN, p_BHTR = self._queries(x_BTD, angles)
        kept_B1SK = self._kept(x_BTD, angles)

        def attend(span: slice, kept: Tensor, _: Tensor, keep: Tensor | None) -> Tensor:
            still = q_BHTN[:, :, span]
            turned = p_BHTR[:, :, span]
            one = still.shape[2] == 1
            inside = one and not torch.is_grad_enabled()
            attended = self._attend_inside if inside else self._attend
            return attended(still, turned, kept, keep)

        nothing = kept_B1SK[..., :0]  # the values come out of the keys
        if cache is None:
            everything = slice(None)
            y_BHTV = attend(everything, kept_B1SK, nothing, mask_BT)
        else:
            y_BHTV = cache.attended(kept_B1SK, nothing, mask_BT, attend)
        by_position = y_BHTV.transpose(1, 2)
        heads = by_position.reshape(B, T, -1)
        return SequenceMixed(self.out(heads))

    def _queries(self, x_BTD: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """The still [B, H, T, N] and the turned part [B, H, T, R] of the queries."""
        c = self.config
        if c.q_rank is None:
            q = self.q(x_BTD)
        else:
            latent = self.q_norm(self.q_down(x_BTD))
            q = self.q_up(latent)
        heads_BTHP = q.unflatten(-1, (c.num_heads, -1))
        still, turning = heads_BTHP.split((c.nope_dim, c.rope_dim), -1)
        turned = rotate(turning, angles)
        if self.stretch != 1.0:
            turned = turned * self.stretch
        return still.transpose(1, 2), turned

    def _kept(self, x_BTD: Tensor, angles: Tensor) -> Tensor:
        """The latent of keys and values, and behind it the keys' turned part: [B, 1, T, C + R]."""
        c = self.config
        both = self.kv_down(x_BTD)
        latent, turning = both.split((c.kv_rank, c.rope_dim), -1)
        normed = self.kv_norm(latent)
        turned = rotate(turning.unsqueeze(2), angles)
        return torch.cat((normed.unsqueeze(1), turned), -1)

    def _attend(self, q_BHTN: Tensor, p_BHTR: Tensor, kept_B1SK: Tensor, keep_BS: Tensor | None) -> Tensor:
        """[B, H, T, V] from the keys and values that the latents unfold to."""
        c = self.config
        c_B1SC, r_B1SR = kept_B1SK.split((c.kv_rank, c.rope_dim), -1)
        k_BHSN, v_BHSV = self._unfolded(c_B1SC)
        r_BHSR = r_B1SR.expand(-1, c.num_heads, -1, -1)
        q = torch.cat((q_BHTN, p_BHTR), -1)
        k = torch.cat((k_BHSN, r_BHSR), -1)
        queried = c.nope_dim + c.rope_dim
        width = max(queried, c.value_dim)
        q, k, v = _to_width(width, q, k, v_BHSV)
        y = self._scored(q, k, v, keep_BS)
        return y[..., : c.value_dim]

    def _unfolded(self, c_B1SC: Tensor) -> tuple[Tensor, ...]:
        """Still keys [B, H, S, N] and values [B, H, S, V] of every head."""
        c = self.config
        both = self.kv_up(c_B1SC.squeeze(1))
        heads = both.unflatten(-1, (c.num_heads, -1))
        by_head = heads.transpose(1, 2)
        return by_head.split((c.nope_dim, c.value_dim), -1)

    def _scored(self, q: Tensor, k: Tensor, v: Tensor, keep_BS: Tensor | None) -> Tensor:
        """Attention at this mixer's scale rather than by the width of the queries."""
        factor = self.scale * q.shape[-1] ** 0.5
        return attend(q * factor, k, v, keep_BS=keep_BS)

    def _attend_inside(self, q_BHTN: Tensor, p_BHTR: Tensor, kept_B1SK: Tensor, keep_BS: Tensor | None) -> Tensor:
        """The same without unfolding: queries are taken into the latent space, and what is found there out of it."""
        c = self.config
        maps_HPC = self.kv_up.weight.unflatten(0, (c.num_heads, -1))
        into_HNC, out_HVC = maps_HPC.split((c.nope_dim, c.value_dim), 1)
        inner = q_BHTN @ into_HNC
        q = torch.cat((inner, p_BHTR), -1)
        y = self._scored(q, kept_B1SK, kept_B1SK, keep_BS)
        found_BHTC = y[..., : c.kv_rank]
        return found_BHTC @ out_HVC.transpose(1, 2)

    def flops_per_token(self, context_length: int) -> float:
        """Forward FLOPs per token, averaged over the positions of a sequence of `context_length` tokens."""
        c = self.config
        maps = [m for m in self.children() if isinstance(m, Linear)]
        weights = sum(m.weight.numel() for m in maps)
        seen = (context_length + 1) / 2
        width = c.nope_dim + c.rope_dim + c.value_dim
        attended = c.num_heads * width * seen
        return 2.0 * weights + 2.0 * attended


def _to_width(width: int, *tensors: Tensor) -> list[Tensor]:
    """The tensors with zeros behind their last dimension, so that it is `width` in all."""
    padded = []
    for tensor in tensors:
        missing = width - tensor.shape[-1]
        padded.append(F.pad(tensor, (0, missing)))
    return padded


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two rows of five tokens of width eight, two heads, latents narrower than the heads together."""
    config = Config(num_heads=2, kv_rank=6, q_rank=5, nope_dim=4, rope_dim=2, value_dim=3)
    x_BTD = torch.randn(2, 5, 8, generator=generator)
    return {"dim": 8, "config": config, "x_BTD": x_BTD}
