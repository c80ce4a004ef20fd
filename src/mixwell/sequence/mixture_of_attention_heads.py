"""Mixture of attention heads: a router picks for each token the query heads that work on it.

**Equation:** I_t = router(x_t), K of N heads;  w_ti = p_ti / detach(sum_{j in I_t} p_tj);
    a_ti = softmax_{s <= t} (R(t) W_q^i x_t . R(s) W_k x_s / sqrt(P));
    y_t = sum_{i in I_t} w_ti W_o^i sum_s a_tis W_v x_s;  keys and values are common to all heads.
    Losses: N sum_i f_i P_i (Switch) and mean (logsumexp of the logits)^2, each with its coefficient.
**Shapes:** x [B, T, D]; query.weight [N, P, D]; kv.weight [2 P, D]; out.weight [N, D, P].
**Reference:** Zhang et al. 2022 (2210.05144), section 3, and the authors' code; trained densely with the `dense_train`
    router it is the attention of Pan et al. 2024 (2404.05567).
**Differs:** rotary positions; causal only. Weights are normed by the detached sum of the paper, which the authors' code
    leaves out; `renormalise` says which. Any router that looks at one token at a time may choose.
**Fails when:** one shared key is too little: N query heads read the same P numbers of a token.
**Cost:** 4 T K D P + 4 T D P + 2 T S K P + 2 T D N FLOPs forward (causal half counted), 2 B S P numbers of cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context, Plan, Routing, combine, dispatch, plan
from mixwell.kernels.attention import KVCache, attend, check_rope_scaling, rotary_angles, rotate
from mixwell.kernels.linear import Linear
from mixwell.mixing import SequenceMixed
from mixwell.sequence._parts import SequenceMixer, positions_after
from mixwell.sequence._routed import StackedLinear

ROUTERS, BALANCE = "experts.routers", "experts.balance"


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
    rope_scaling: Mapping[str, Any] | None = None  # {"type": "linear" | "llama3", ...}; None: as trained

    def __post_init__(self) -> None:
        if not 1 <= self.num_heads <= self.num_experts:
            raise ValueError(f"num_heads is {self.num_heads} of num_experts = {self.num_experts}; expected 1 to "
                             "num_experts")
        if self.head_dim is not None and (self.head_dim < 1 or self.head_dim % 2):
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions turn pairs, so choose an even number")
        if not self.rope_theta > 0:
            raise ValueError(f"rope_theta is {self.rope_theta}; expected a number above 0")
        if any(isinstance(v, bool) or not isinstance(v, (int, float)) or v < 0 for v in self.balance.values()):
            raise ValueError(f"balance is {dict(self.balance)}; expected a coefficient of 0 or more for each rule")
        check_rope_scaling(self.rope_scaling)


def build_router(config: Config, dim: int, generator: torch.Generator | None) -> nn.Module:
    """The router of the config, with k = K where it has a k; one that looks at other tokens is refused."""
    options = dict(config.router)
    entry = registry.find(str(options.pop("method", "top_k")), ROUTERS)
    if "batch-invariant" not in entry.tags:
        raise MixwellError(f"router {entry.name} looks at other tokens, later ones too; a causal mixer needs one that "
                           "routes each token by itself, such as top_k.")
    known = {f.name for f in fields(entry.module().Config)}
    defaults = {"k": config.num_heads, "renormalise": False}
    options = {**{k: v for k, v in defaults.items() if k in known}, **options}
    return entry.load()(dim, config.num_experts, from_dict(entry.module().Config, options, f"router {entry.name}"),
                        generator)


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
        width = config.head_dim or dim // config.num_heads
        if config.head_dim is None and (dim % config.num_heads or width % 2):
            raise ValueError(f"num_heads = {config.num_heads} does not divide dim = {dim} into heads of even width; "
                             "choose other numbers or give head_dim")
        self.dim, self.config, self.width = dim, config, width
        self.router = build_router(config, dim, generator)
        self.rules = {name: registry.find(name, BALANCE) for name in config.balance}
        self.query = StackedLinear(config.num_experts, dim, width, False, generator)
        self.kv = Linear(dim, 2 * width, False, generator)
        self.out = StackedLinear(config.num_experts, width, dim, False, generator)

    def new_cache(self) -> KVCache:
        """An empty cache for `forward`."""
        return KVCache()

    def forward(self, x_BTD: Tensor, positions_BT: Tensor | None = None, cache: KVCache | None = None,
                mask_BT: Tensor | None = None, context: Context | None = None) -> SequenceMixed:
        """[B, T, D] -> [B, T, D]; see `SequenceMixer`. Losses are named `heads.` and the rule."""
        if positions_BT is None:
            positions_BT = positions_after(cache, x_BTD)
        if context is None:
            context = self._context(x_BTD, mask_BT)
        x_TD = x_BTD.flatten(0, 1)
        routing = self.router(x_TD, context)
        order = plan(routing.indices_TK, self.config.num_experts)
        q_BTKP = self._queries(x_TD, order).unflatten(0, x_BTD.shape[:2])
        heads_NP = self._attend(q_BTKP, x_BTD, positions_BT, cache, mask_BT).index_select(0, order.slots_N)
        out_ND = self.out(heads_NP, order.counts_E)
        y_TD = combine(out_ND, order, self._weights(routing))
        return SequenceMixed(y_TD.view_as(x_BTD), routing, *self._losses(routing, context))

    def _context(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Context:
        """What the mask alone says of the tokens."""
        B, T, _ = x_BTD.shape
        return Context(batch_shape=(B, T), mask_T=None if mask_BT is None else mask_BT.flatten())

    def _queries(self, x_TD: Tensor, order: Plan) -> Tensor:
        """[T, K, P], one query for each slot; an empty one asks with zeros."""
        rows_NP = self.query(dispatch(x_TD, order), order.counts_E)
        padded = torch.cat((rows_NP, rows_NP.new_zeros(1, self.width)))
        slots = order.rows_TK.remainder(padded.shape[0])  # -1, an empty slot, becomes the last row
        return padded.index_select(0, slots.flatten()).view(*slots.shape, self.width)

    def _attend(self, q_BTKP: Tensor, x_BTD: Tensor, positions_BT: Tensor, cache: KVCache | None,
                mask_BT: Tensor | None) -> Tensor:
        """What each slot's query finds, [B T K, P], in the order of slots; the cache is read and extended."""
        angles = rotary_angles(positions_BT, self.width, self.config.rope_theta, self.config.rope_scaling)
        k, v = self.kv(x_BTD).unflatten(-1, (2, 1, self.width)).unbind(2)
        k, v, keep = rotate(k, angles), v.transpose(1, 2), mask_BT
        if cache is not None:
            k, v, keep = cache.append(k, v, mask_BT)
        found_BKTP = attend(rotate(q_BTKP, angles), k, v, keep_BS=keep)
        return found_BKTP.transpose(1, 2).reshape(-1, self.width)

    def _weights(self, routing: Routing) -> Tensor:
        weights = routing.weights_TK
        if not self.config.renormalise:
            return weights
        tiny = torch.finfo(weights.dtype).tiny
        # detached, as in the paper: the sum scales the weights, and only their ratio learns
        total = weights.sum(-1, keepdim=True).detach()
        return weights / total.clamp_min(tiny)

    def _losses(self, routing: Routing, context: Context) -> tuple[dict[str, Tensor], Tensor | None]:
        losses = {f"heads.{name}": value for name, value in routing.losses.items()}
        terms = list(losses.values())
        for name, entry in self.rules.items():
            losses[f"heads.{name}"] = loss = entry.load()(routing, entry.module().Config(), context)
            if self.config.balance[name]:
                terms.append(self.config.balance[name] * loss)
        return losses, torch.stack([t.float() for t in terms]).sum() if terms else None

    def flops_per_token(self, context_length: int) -> float:
        """4 K D P + 4 D P for the maps, 4 K P for each key seen (half of `context_length` in the mean), 2 D N."""
        chosen = float(getattr(self.router, "experts_per_token", self.config.num_heads))
        maps = 4.0 * self.dim * self.width * (chosen + 1)
        return maps + 4.0 * chosen * self.width * (context_length + 1) / 2 + 2.0 * self.dim * self.config.num_experts


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two rows of five tokens of width eight, two of four heads at a time."""
    config = Config(num_experts=4, num_heads=2)
    x_BTD = torch.randn(2, 5, 8, generator=generator)
    return {"dim": 8, "config": config, "x_BTD": x_BTD}
