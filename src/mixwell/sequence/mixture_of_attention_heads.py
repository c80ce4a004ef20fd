"""Mixture of attention heads: a router picks for each token the query heads that work on it.

**Equation:** I_t = router(x_t), K of N heads;  w_ti = p_ti / detach(sum_{j in I_t} p_tj);
    a_ti = softmax_{s <= t} (R(t) W_q^i x_t . R(s) W_k x_s / sqrt(P));
    y_t = sum_{i in I_t} w_ti W_o^i sum_s a_tis W_v x_s;  keys and values are common to all heads.
    Losses: N sum_i f_i P_i (Switch) and mean (logsumexp of the logits)^2, each with its coefficient.
**Shapes:** x [B, T, D]; query.weight [N, P, D]; kv.weight [2 P, D]; out.weight [N, D, P].
**Reference:** Zhang et al. 2022 (2210.05144), section 3, and the authors' code; trained densely with the `dense_train`
    router it is the attention of Pan et al. 2024 (2404.05567).
**Differs:** rotary positions; causal only. Weights are normed by the detached sum of the paper, which the authors' code
    leaves out; `renormalise` says which. Any router that looks at one token at a time may choose. All maps start normal
    with std 0.02.
**Fails when:** one shared key is too little: N query heads read the same P numbers of a token.
**Cost:** 4 T K D P + 4 T D P + 2 T S K P + 2 T D N FLOPs forward (causal half counted), 2 B S P numbers of cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.config import from_dict
from mixwell.core.method import method
from mixwell.core.routing import Context, Plan, Routing, combine, dispatch, plan
from mixwell.kernels.attention import attend
from mixwell.kernels.cache import KVCache
from mixwell.kernels.linear import Linear
from mixwell.kernels.rope import attention_factor, check_rope_scaling
from mixwell.kernels.rotary import rotary_angles, rotate
from mixwell.mixing import SequenceMixed, apply_balance, build_balance, check_above
from mixwell.sequence._parts import SequenceMixer, context_of, head_width, positions_after
from mixwell.sequence._routed import StackedLinear, causal_router


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the mixture of heads. A language model hands on the fields it shares by name."""

    num_experts: int  # N, heads to choose from
    num_heads: int  # K, heads that work on a token, 1 to N
    head_dim: int | None = None  # P, even; default D / K
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k"})  # method and options; k is K
    renormalise: bool = True  # divide a token's weights by their detached sum
    balance: Mapping[str, float] = field(default_factory=lambda: {"switch": 0.01, "z_loss": 0.001})  # rule: coefficient
    rope_theta: float = 10000.0  # base of the rotary wavelengths, above 0
    rope_scaling: Mapping[str, Any] | None = None  # see `kernels.rope`; None: as trained

    def __post_init__(self) -> None:
        most = self.num_experts
        if not 1 <= self.num_heads <= most:
            raise ValueError(f"num_heads is {self.num_heads} of num_experts = {most}; expected 1 to num_experts")
        width = self.head_dim
        if width is not None and (width < 1 or width % 2):
            raise ValueError(f"head_dim is {width}; rotary positions turn pairs, so choose an even number")
        check_above(self, rope_theta=0)
        for coefficient in self.balance.values():
            number = isinstance(coefficient, (int, float)) and not isinstance(coefficient, bool)
            if not number or coefficient < 0:
                raise ValueError(f"balance is {dict(self.balance)}; expected a coefficient of 0 or more for each rule")
        check_rope_scaling(self.rope_scaling)


def build_router(config: Config, dim: int, generator: torch.Generator | None) -> nn.Module:
    """The router of the config, with k = K where it has a k.

    Raises `MixwellError` for one that looks at other tokens.
    """
    entry = causal_router(config.router)
    options = {name: value for name, value in config.router.items() if name != "method"}
    kind = entry.module().Config
    known = {f.name for f in fields(kind)}
    defaults = {"k": config.num_heads, "renormalise": False}
    for name in known & defaults.keys() - options.keys():
        options[name] = defaults[name]
    where = f"router {entry.name}"
    own = from_dict(kind, options, where)
    return entry.load()(dim, config.num_experts, own, generator)


@method(
    title="Mixture of attention heads",
    paper="Mixture of Attention Heads: Selecting Attention Heads Per Token",
    year=2022,
    tags={"positions", "router", "estimated-gradient"},
)
class MixtureOfAttentionHeads(SequenceMixer):
    """Attention whose query heads are chosen token by token; see the module's card."""

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        self.width = head_width(dim, config.num_heads, config.head_dim)
        experts = config.num_experts
        self.router = build_router(config, dim, generator)
        self.rules = build_balance(config.balance)
        self.query = StackedLinear(experts, dim, self.width, False, generator)
        self.kv = Linear(dim, 2 * self.width, False, generator)
        self.out = StackedLinear(experts, self.width, dim, False, generator)

    def new_cache(self) -> KVCache:
        """An empty cache for `forward`."""
        return KVCache()

    def forward(self, x_BTD: Tensor, positions_BT: Tensor | None = None, cache: KVCache | None = None,
                mask_BT: Tensor | None = None, context: Context | None = None) -> SequenceMixed:
        """[B, T, D] -> [B, T, D]; see `SequenceMixer`. Losses are named `heads.` and the rule."""
        if positions_BT is None:
            positions_BT = positions_after(cache, x_BTD)
        if context is None:
            context = context_of(x_BTD, mask_BT)
        x_TD = x_BTD.flatten(0, 1)
        routing = self.router(x_TD, context)
        order = plan(routing.indices_TK, self.config.num_experts)
        shape = x_BTD.shape[:2]
        q_TKP = self._queries(x_TD, order)
        q_BTKP = q_TKP.unflatten(0, shape)
        found = self._attend(q_BTKP, x_BTD, positions_BT, cache, mask_BT)
        heads_NP = found.index_select(0, order.slots_N)
        out_ND = self.out(heads_NP, order.counts_E)
        weights = self._weights(routing)
        y_TD = combine(out_ND, order, weights)
        losses, aux = apply_balance(self.rules, routing, context)
        named = {f"heads.{name}": loss for name, loss in losses.items()}
        y_BTD = y_TD.view_as(x_BTD)
        return SequenceMixed(y_BTD, routing, named, aux)

    def _queries(self, x_TD: Tensor, order: Plan) -> Tensor:
        """[T, K, P], one query for each slot; an empty one asks with zeros."""
        rows_NP = self.query(dispatch(x_TD, order), order.counts_E)
        zeros = rows_NP.new_zeros(1, self.width)
        padded = torch.cat((rows_NP, zeros))
        slots = order.rows_TK.remainder(len(padded))  # -1, an empty slot, becomes the last row
        q_SP = padded.index_select(0, slots.flatten())
        return q_SP.view(*slots.shape, self.width)

    def _attend(self, q_BTKP: Tensor, x_BTD: Tensor, positions_BT: Tensor, cache: KVCache | None,
                mask_BT: Tensor | None) -> Tensor:
        """What each slot's query finds, [B T K, P], in the order of slots; the cache is read and extended."""
        c = self.config
        angles = rotary_angles(positions_BT, self.width, c.rope_theta, c.rope_scaling)
        both = (2, 1, self.width)
        kv = self.kv(x_BTD).unflatten(-1, both)
        k, v = kv.unbind(2)
        k = rotate(k, angles)
        v = v.transpose(1, 2)
        keep = mask_BT
        if cache is not None:
            k, v, keep = cache.append(k, v, mask_BT)
        stretch = attention_factor(c.rope_scaling) ** 2  # of turned queries and turned keys, laid on the queries
        q = rotate(q_BTKP * stretch, angles)
        found_BKTP = attend(q, k, v, keep_BS=keep)
        by_slot = found_BKTP.transpose(1, 2)
        return by_slot.reshape(-1, self.width)

    def _weights(self, routing: Routing) -> Tensor:
        weights = routing.weights_TK
        if not self.config.renormalise:
            return weights
        tiny = torch.finfo(weights.dtype).tiny
        # detached, as in the paper: the sum scales the weights, and only their ratio learns
        total = weights.sum(-1, keepdim=True).detach()
        return weights / total.clamp_min(tiny)

    def flops_per_token(self, context_length: int) -> float:
        """4 K D P + 4 D P for the maps, 4 K P for each key seen (half of `context_length` in the mean), 2 D N."""
        heads = float(getattr(self.router, "experts_per_token", self.config.num_heads))
        seen = (context_length + 1) / 2
        maps = 4.0 * self.dim * self.width * (heads + 1)
        keys = 4.0 * heads * self.width * seen
        return maps + keys + 2.0 * self.dim * self.config.num_experts


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two rows of five tokens of width eight, two of four heads at a time."""
    config = Config(num_experts=4, num_heads=2)
    x_BTD = torch.randn(2, 5, 8, generator=generator)
    return {"dim": 8, "config": config, "x_BTD": x_BTD}
