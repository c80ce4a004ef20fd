"""Causal softmax attention with rotary positions and grouped key/value heads.

**Equation:** q_h = R(t) W_q^h x_t,  k_g = R(s) W_k^g x_s,  v_g = W_v^g x_s;
    a_hts = softmax_{s <= t} (q_ht . k_gs / sqrt(P)),  g = floor(h / (H / G));  y_t = W_o [sum_s a_hts v_gs]_h;
    R(t) turns the pair (i, i + P/2) by t theta^(-2 i / P) radians.
**Shapes:** x [B, T, D]; qkv.weight [(H + 2 G) P, D] holds q, k, v in that order; out.weight [D, H P].
**Reference:** Vaswani et al. 2017 (1706.03762), eq. 1; rotary positions Su et al. 2021 (2104.09864), eq. 34;
    grouped heads Ainslie et al. 2023 (2305.13245); q/k norm Henry et al. 2020 (2010.04245) in the forms of Qwen3
    ("head": each head by itself, one weight [P]) and OLMoE ("full": all heads together, before they are split);
    sliding window Jiang et al. 2023 (2310.06825); capped scores as in Gemma 2 (2408.00118); sinks as in GPT-OSS, one
    score a head that takes its share of the softmax and gives nothing.
**Differs:** no dropout; pairs are (i, i + P/2) as in public checkpoints, not (2 i, 2 i + 1). All maps start normal with
    std 0.02.
**Fails when:** the input is much longer than what it was trained on; cost grows with the square of the length.
**Cost:** 2 T D P (2 H + 2 G) + 2 T S H P FLOPs forward (causal half counted), 2 B G S P numbers of cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.kernels.attention import attend, attend_scored
from mixwell.kernels.cache import KVCache
from mixwell.kernels.linear import Linear
from mixwell.kernels.norm import Kind, build_norm
from mixwell.kernels.rope import attention_factor, check_rope_scaling
from mixwell.kernels.rotary import rotary_angles, rotate, rotate_one, split_rotate, turns_one
from mixwell.mixing import SequenceMixed, check_above
from mixwell.sequence._parts import SequenceMixer, head_width, positions_after


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of attention. A language model hands on the fields it shares by name."""

    num_heads: int  # H, at least 1
    num_kv_heads: int | None = None  # G, a divisor of H; default H
    head_dim: int | None = None  # P, even; default D / H
    rope_theta: float = 10000.0  # base of the rotary wavelengths, above 0
    rope_scaling: Mapping[str, Any] | None = None  # {"type": "linear", "factor": 2}, see `kernels.rope`
    rotary_dim: int | None = None  # leading channels of a head that turn, even; 0: none; default P
    norm_eps: float = 1e-5  # of the q/k norm
    norm: Kind = "rms"  # kind of the q/k norm
    bias: bool = False  # on q, k, v and the output
    out_bias: bool | None = None  # on the output alone; default as `bias`
    qk_norm: Literal["none", "head", "full"] = "none"  # norm of queries and keys, before the rotation
    clip_qkv: float | None = None  # q, k and v are clipped to [-clip, clip], above 0
    sliding_window: int | None = None  # a token sees the last so many positions, itself counted
    score_scale: float | None = None  # factor on q . k, above 0; default 1 / sqrt(P)
    softcap: float | None = None  # c: scores s become c tanh(s / c), above 0
    sinks: bool = False  # a learnt score of each head that gives nothing

    def __post_init__(self) -> None:
        check_above(self, num_heads=0, num_kv_heads=0, head_dim=0, rope_theta=0, clip_qkv=0, sliding_window=0,
                    score_scale=0, softcap=0, rotary_dim=-1)
        shared = self.num_kv_heads or self.num_heads
        if self.num_heads % shared:
            raise ValueError(f"num_kv_heads = {shared} does not divide num_heads = {self.num_heads}; choose a divisor")
        width = self.head_dim
        if width is not None and width % 2:
            raise ValueError(f"head_dim is {width}; rotary positions turn pairs, so choose an even number")
        turned = self.rotary_dim
        if turned is not None and turned % 2:
            raise ValueError(f"rotary_dim is {turned}; rotary positions turn pairs, so choose an even number")
        check_rope_scaling(self.rope_scaling)


@method(
    title="Causal attention",
    paper=("Attention Is All You Need", "RoFormer: Enhanced Transformer with Rotary Position Embedding",
           "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints"),
    year=2017,
    tags={"positions"},
)
class Attention(SequenceMixer):
    """Causal softmax attention; see the module's card."""

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        self.heads = config.num_heads
        self.kv_heads = config.num_kv_heads or config.num_heads
        self.width = head_width(dim, config.num_heads, config.head_dim)
        q_rows = self.heads * self.width
        kv_rows = self.kv_heads * self.width
        all_rows = q_rows + 2 * kv_rows
        self.turned = self.width if config.rotary_dim is None else config.rotary_dim
        if self.turned > self.width:
            raise ValueError(f"rotary_dim is {self.turned}; expected at most head_dim = {self.width}")
        self.qkv = Linear(dim, all_rows, config.bias, generator)
        out_bias = config.bias if config.out_bias is None else config.out_bias
        self.out = Linear(q_rows, dim, out_bias, generator)
        if config.qk_norm != "none":
            full = config.qk_norm == "full"
            q_width = q_rows if full else self.width
            k_width = kv_rows if full else self.width
            self.q_norm = build_norm(config.norm, q_width, config.norm_eps)
            self.k_norm = build_norm(config.norm, k_width, config.norm_eps)
        self.sinks = nn.Parameter(torch.zeros(self.heads)) if config.sinks else None
        self._set_scales(config)

    def _set_scales(self, config: Config) -> None:
        """What depends on the options alone, worked out once."""
        self.scale = self.width**-0.5
        factor = attention_factor(config.rope_scaling)
        self.stretch = factor**2  # of turned queries and turned keys, laid on the queries alone
        whole = self.turned == self.width
        self.query_factor = self.stretch if whole else 1.0
        if config.score_scale is not None:
            self.query_factor *= config.score_scale / self.scale
        normed = config.qk_norm != "none"
        clipped = config.clip_qkv is not None
        self.bare = whole and not normed and not clipped

    def new_cache(self) -> KVCache:
        """An empty cache for `forward`."""
        return KVCache()

    def forward(self, x_BTD: Tensor, positions_BT: Tensor | None = None, cache: KVCache | None = None,
                mask_BT: Tensor | None = None, context: Context | None = None) -> SequenceMixed:
        """[B, T, D] -> [B, T, D]; see `SequenceMixer`. The context is not read."""
        B, T, _ = x_BTD.shape
        if positions_BT is None:
            positions_BT = positions_after(cache, x_BTD)
        q, k, v = self._project(x_BTD, positions_BT)

        def attend(span: slice, keys: Tensor, values: Tensor, keep: Tensor | None) -> Tensor:
            asking = q[:, :, span]
            return self._attend(asking, keys, values, keep)

        if cache is None:
            everything = slice(None)
            y_BHTP = attend(everything, k, v, mask_BT)
        else:
            y_BHTP = cache.attended(k, v, mask_BT, attend)
        by_position = y_BHTP.transpose(1, 2)
        heads = by_position.reshape(B, T, -1)
        return SequenceMixed(self.out(heads))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, keep_BS: Tensor | None) -> Tensor:
        """Queries [B, H, T, P] over keys and values [B, G, S, P]."""
        config = self.config
        window = config.sliding_window
        if self.query_factor != 1.0:
            q = q * self.query_factor
        if config.softcap is None and self.sinks is None:
            return attend(q, k, v, window=window, keep_BS=keep_BS)
        return attend_scored(q, k, v, self.scale, softcap=config.softcap, sinks_H=self.sinks, window=window,
                             keep_BS=keep_BS)

    def _project(self, x_BTD: Tensor, positions_BT: Tensor) -> tuple[Tensor, ...]:
        """Queries [B, H, T, P], keys and values [B, G, T, P], normed, clipped and turned by their positions."""
        qkv = self.qkv(x_BTD)
        if torch.is_grad_enabled() and self.bare:  # queries and keys are only turned, neither normed nor clipped
            heads = qkv.unflatten(-1, (-1, self.width))
            angles = self._angles(positions_BT)
            return split_rotate(heads, angles, self.heads, self.kv_heads)
        q, k, v = self._normed(qkv)
        q, k = self._rotate(q, k, positions_BT)
        return q, k, v.transpose(1, 2)

    def _angles(self, positions_BT: Tensor) -> Tensor:
        config = self.config
        return rotary_angles(positions_BT, self.turned, config.rope_theta, config.rope_scaling)

    def _normed(self, qkv_BTR: Tensor) -> tuple[Tensor, ...]:
        """Queries [B, T, H, P], keys and values [B, T, G, P], normed and clipped but not rotated."""
        rows = [n * self.width for n in (self.heads, self.kv_heads, self.kv_heads)]
        q, k, v = qkv_BTR.split(rows, -1)
        if self.config.qk_norm == "full":
            q = self.q_norm(q)
            k = self.k_norm(k)
        q, k, v = (t.unflatten(-1, (-1, self.width)) for t in (q, k, v))
        if self.config.qk_norm == "head":
            q = self.q_norm(q)
            k = self.k_norm(k)
        if self.config.clip_qkv is not None:
            q, k, v = (t.clamp(-self.config.clip_qkv, self.config.clip_qkv) for t in (q, k, v))
        return q, k, v

    def _rotate(self, q_BTHP: Tensor, k_BTGP: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, H, T, P] and keys [B, G, T, P], turned by their positions."""
        if not self.turned:
            return q_BTHP.transpose(1, 2), k_BTGP.transpose(1, 2)
        whole = self.turned == self.width
        if whole and turns_one(q_BTHP):
            theta, scaling = self.config.rope_theta, self.config.rope_scaling
            q = rotate_one(q_BTHP, positions_BT, theta, scaling)
            k = rotate_one(k_BTGP, positions_BT, theta, scaling)
            return q.transpose(1, 2), k.transpose(1, 2)
        angles = self._angles(positions_BT)
        if not whole:
            q = self._rotate_part(q_BTHP, self.stretch, angles)
            return q, self._rotate_part(k_BTGP, 1.0, angles)
        q = rotate(q_BTHP, angles)
        return q, rotate(k_BTGP, angles)

    def _rotate_part(self, x_BTHP: Tensor, factor: float, angles_BTP: Tensor) -> Tensor:
        """[B, H, T, P] with the leading channels of each head turned, and longer by `factor`."""
        rest = self.width - self.turned
        turning, still = x_BTHP.split((self.turned, rest), -1)
        if factor != 1.0:
            turning = turning * factor
        turned = rotate(turning, angles_BTP)
        return torch.cat((turned, still.transpose(1, 2)), -1)

    def flops_per_token(self, context_length: int) -> float:
        """Forward FLOPs per token, averaged over the positions of a sequence of `context_length` tokens."""
        c = self.config
        window = min(c.sliding_window or context_length, context_length)
        before_full = (window - 1) / 2  # the first positions see fewer keys than the window holds
        seen = window * (context_length - before_full) / context_length
        into = self.qkv.weight.numel()
        weights = into + self.out.weight.numel()
        keys = 4.0 * self.heads * self.width * seen
        return 2.0 * weights + keys


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two rows of five tokens of width eight, four heads that share two of keys and values."""
    config = Config(num_heads=4, num_kv_heads=2)
    x_BTD = torch.randn(2, 5, 8, generator=generator)
    return {"dim": 8, "config": config, "x_BTD": x_BTD}
