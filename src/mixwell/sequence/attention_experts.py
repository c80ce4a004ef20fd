"""Attention experts: a key/value head with its query heads is an expert, and a token works in those it is routed to.

**Equation:** I_t = router(x_t), k of G groups with weights w_tg;  h in group g:
    a_hts = softmax_{s <= t, g in I_s} (R(t) W_q^h x_t . R(s) W_k^g x_s / sqrt(P));
    y_t = a sum_{g in I_t} w_tg W_o^g [sum_s a_hts W_v^g x_s]_{h in g}. A token that is not routed to a group has no key
    there: within a group only its own tokens see each other.
**Shapes:** x [B, T, D]; qkv.weight [(H + 2 G) P, D] holds q, k, v in that order; out.weight [D, H P];
    router.weight [G, D].
**Reference:** Qu et al. 2024, LLaMA-MoE v2 (2411.15708), section 3, and the authors' code: G = 8, k = 7, a = 4.
**Differs:** all groups are computed and those not chosen masked out, by one more channel of the keys: the numbers are
    those of the paper, no product is saved. Weights of attention keep their layout, so that a dense model's fit as they
    are. a is G unless said, with which even weights and k = G give plain attention.
**Fails when:** few tokens share a group: they see little of the past.
**Cost:** that of attention, and 2 T D G FLOPs of the router; one number more of cache a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.kernels.attention import attend_scored
from mixwell.kernels.cache import KVCache
from mixwell.kernels.linear import Linear
from mixwell.kernels.rope import attention_factor, check_rope_scaling
from mixwell.kernels.rotary import rotary_angles, rotate
from mixwell.mixing import SequenceMixed, apply_balance, build_balance, build_router, check_above
from mixwell.sequence._parts import SequenceMixer, context_of, head_width, positions_after
from mixwell.sequence._routed import causal_router

FAR = 2.0**14  # what the score of a key that is not there lies below all others


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of attention experts. A language model hands on the fields it shares by name."""

    num_heads: int  # H, at least 1
    num_kv_heads: int | None = None  # G, a divisor of H: the experts; default H
    head_dim: int | None = None  # P, even; default D / H
    rope_theta: float = 10000.0  # base of the rotary wavelengths, above 0
    rope_scaling: Mapping[str, Any] | None = None  # see `kernels.rope`
    bias: bool = False  # on q, k, v and the output
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})  # method and options
    scale: float | None = None  # a, above 0; default G
    balance: Mapping[str, Any] = field(default_factory=lambda: {"switch": 0.01})  # rule -> coefficient

    def __post_init__(self) -> None:
        check_above(self, num_heads=0, num_kv_heads=0, head_dim=0, rope_theta=0, scale=0)
        groups = self.groups
        if self.num_heads % groups:
            raise ValueError(f"num_kv_heads = {groups} does not divide num_heads = {self.num_heads}; choose a divisor")
        width = self.head_dim
        if width is not None and width % 2:
            raise ValueError(f"head_dim is {width}; rotary positions turn pairs, so choose an even number")
        check_rope_scaling(self.rope_scaling)

    @property
    def groups(self) -> int:
        """G."""
        return self.num_kv_heads or self.num_heads


@method(
    title="Attention experts",
    paper="LLaMA-MoE v2: Exploring Sparsity of LLaMA from Perspective of Mixture-of-Experts with Post-Training",
    year=2024,
    tags={"positions", "router"},
)
class AttentionExperts(SequenceMixer):
    """Attention whose groups of heads are chosen token by token; see the module's card."""

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        self.heads = config.num_heads
        self.groups = config.groups
        self.width = head_width(dim, config.num_heads, config.head_dim)
        causal_router(config.router)  # it refuses others
        q_rows = self.heads * self.width
        kv_rows = self.groups * self.width
        rows = q_rows + 2 * kv_rows
        self.qkv = Linear(dim, rows, config.bias, generator)
        self.out = Linear(q_rows, dim, config.bias, generator)
        self.router = build_router(config.router, dim, self.groups, generator)
        self.rules = build_balance(config.balance)
        self.scale = float(self.groups) if config.scale is None else config.scale

    def new_cache(self) -> KVCache:
        """An empty cache for `forward`."""
        return KVCache()

    def forward(self, x_BTD: Tensor, positions_BT: Tensor | None = None, cache: KVCache | None = None,
                mask_BT: Tensor | None = None, context: Context | None = None) -> SequenceMixed:
        """[B, T, D] -> [B, T, D]; see `SequenceMixer`. Losses are named `heads.` and the rule."""
        if positions_BT is None:
            positions_BT = positions_after(cache, x_BTD)
        shape = x_BTD.shape[:2]
        if context is None:
            context = context_of(x_BTD, mask_BT)
        x_TD = x_BTD.flatten(0, 1)
        routing = self.router(x_TD, context)
        weights_TG, there_TG = spread(routing, self.groups)
        there_BTG = there_TG.unflatten(0, shape)
        found_BTHP = self._attended(x_BTD, positions_BT, cache, mask_BT, there_BTG)
        each = self.heads // self.groups
        share_TH = weights_TG.repeat_interleave(each, 1)
        share_BTH = share_TH.unflatten(0, shape)
        scaled = self.scale * share_BTH.to(found_BTHP.dtype)
        by_token = found_BTHP * scaled.unsqueeze(-1)
        losses, aux = apply_balance(self.rules, routing, context)
        named = {f"heads.{name}": loss for name, loss in losses.items()}
        y_BTD = self.out(by_token.flatten(2))
        return SequenceMixed(y_BTD, routing, named, aux)

    def _attended(self, x_BTD: Tensor, positions_BT: Tensor, cache: KVCache | None, mask_BT: Tensor | None,
                  there_BTG: Tensor) -> Tensor:
        """What each head finds among the tokens of its group [B, T, H, P]; the cache is read and extended."""
        q, k, v = self._turned(x_BTD, positions_BT)
        factor = self.width**-0.5
        there_BGT = there_BTG.transpose(1, 2)
        gone = 1.0 - there_BGT.to(k.dtype)
        keys = torch.cat((k, gone.unsqueeze(-1)), -1)
        beyond = torch.full_like(q[..., :1], -FAR / factor)
        asking = torch.cat((q, beyond), -1)
        keep = mask_BT
        if cache is not None:
            keys, v, keep = cache.append(keys, v, mask_BT)
        found_BHTP = attend_scored(asking, keys, v, factor, keep_BS=keep)
        return found_BHTP.transpose(1, 2)

    def _turned(self, x_BTD: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, P], keys and values [B, G, T, P], turned by their positions."""
        c = self.config
        rows = self.qkv(x_BTD)
        heads = rows.unflatten(-1, (-1, self.width))
        q, k, v = heads.split((self.heads, self.groups, self.groups), 2)
        angles = rotary_angles(positions_BT, self.width, c.rope_theta, c.rope_scaling)
        stretch = attention_factor(c.rope_scaling)
        q = q * stretch**2  # of turned queries and turned keys, laid on the queries
        return rotate(q, angles), rotate(k, angles), v.transpose(1, 2)

    def flops_per_token(self, context_length: int) -> float:
        """Forward FLOPs per token, averaged over a row of `context_length` tokens; all groups are computed."""
        into = self.qkv.weight.numel()
        back = self.out.weight.numel()
        routed = self.dim * self.groups
        maps = into + back + routed
        seen = (context_length + 1) / 2
        rows = self.heads * self.width
        products = maps + 2.0 * rows * seen
        return 2.0 * products


def spread(routing: Routing, groups: int) -> tuple[Tensor, Tensor]:
    """(weights, whether a token is routed there) of every token and group [T, G]."""
    chosen = routing.indices_TK >= 0
    place = routing.indices_TK.clamp_min(0)
    weights = torch.where(chosen, routing.weights_TK, 0.0)
    nowhere = weights.new_zeros(len(weights), groups)
    weights_TG = nowhere.scatter_add(1, place, weights)
    ones = chosen.to(nowhere.dtype)
    counts_TG = nowhere.scatter_add(1, place, ones)
    return weights_TG, counts_TG > 0


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two rows of five tokens of width eight, two of four groups at a time."""
    config = Config(num_heads=4, router={"method": "top_k", "k": 2})
    x_BTD = torch.randn(2, 5, 8, generator=generator)
    return {"dim": 8, "config": config, "x_BTD": x_BTD}
