"""Sparse all-MLP block: a mixture that mixes positions channel by channel, then one that mixes channels.

**Equation:** a = [sum_{i in I(u^c)} w_i M_i(u^c)]_c, u^c channel c of the row, a vector over its S positions;
    b_t = sum_{j in J(n_t)} w_j N_j(n_t), n = RMSNorm(u + a);  y = a + b;  M_i, N_j: W_down gelu(W_up v).
    With other inner sizes: u = P_in x Q_in before, and y = P_out (a + b) Q_out after.
    When an expert is full, it keeps the slots of its highest scores (importance-score routing).
**Shapes:** x [B * S, D]; token_up_proj [E1, F1, S'], token_down_proj [E1, S', F1]; up_proj [E2, F2, C'], down_proj
    [E2, C', F2]; S' = S and C' = D by default; P_in [S', S], Q_in [D, C'].
**Reference:** Lou et al. 2021, Sparse-MLP (2109.02008), sections 3.2 to 3.5.
**Differs:** from memory of the paper. The first norm is the caller's; RMS norm between the stages; no biases. The maps
    between the sizes are linear. Importance-score routing is the overflow rule `priority`, by each slot's own score.
    Experts start normal with std 0.02, the maps between the sizes with one over the root of what they read.
**Fails when:** used in a language model: the first stage sees all positions, later ones too. Rows of another length are
    refused, and so is padding.
**Cost:** 4 K (D F1 + D F2) FLOPs per token at the plain sizes, and 2 D (E1 + E2) for the routers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers._parts import ChannelMixer, routed_mlp
from mixwell.kernels.linear import linear
from mixwell.kernels.norm import RMSNorm
from mixwell.mixing import (
    Mixed,
    apply_balance,
    build_balance,
    build_overflow,
    build_router,
    check_above,
    check_least,
    normal_parameter,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the sparse all-MLP block."""

    seq_len: int  # S, positions of a row
    token_experts: int  # E1, experts that mix positions
    channel_experts: int  # E2, experts that mix channels
    token_hidden_dim: int  # F1
    channel_hidden_dim: int  # F2
    inner_len: int | None = None  # S', positions between the outer maps; default S
    inner_dim: int | None = None  # C', channels between the outer maps; default D
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 1})  # of both stages
    balance: Mapping[str, Any] = field(default_factory=lambda: {"switch": 0.01})  # of both stages
    capacity_factor: float | None = None  # an expert takes at most this times T K / E slots; default: all that come
    priority: Literal["own", "max", "sum"] = "own"  # which slots a full expert keeps; see `experts.overflow.priority`
    norm_eps: float = 1e-5  # above 0

    def __post_init__(self) -> None:
        check_least(self, seq_len=1, token_experts=1, channel_experts=1, token_hidden_dim=1, channel_hidden_dim=1)
        check_above(self, inner_len=0, inner_dim=0, capacity_factor=0, norm_eps=0)


def rows_of(x_TD: Tensor, context: Context, seq_len: int) -> Tensor:
    """[T, D] -> [B, S, D]; raises `MixwellError` for padding and for rows of another length."""
    tokens, dim = x_TD.shape
    shape = context.batch_shape
    length = seq_len if shape is None else shape[1]
    if length != seq_len or tokens % seq_len:
        raise MixwellError(f"AllMLP mixes rows of {seq_len} positions and got {tokens} tokens in rows of {length}; cut "
                           "the data into rows of that length, or set seq_len.")
    mask = context.mask_T
    if mask is not None and not bool(mask.all()):
        raise MixwellError("AllMLP mixes all positions of a row and got padding; give full rows.")
    return x_TD.view(-1, seq_len, dim)


@method(
    title="Sparse all-MLP",
    paper="Cross-token Modeling with Conditional Computation",
    year=2021,
    tags={"router", "non-causal"},
)
class AllMLP(ChannelMixer):
    """Mixture over positions, then over channels; see the module's card."""

    config: Config
    token_router: Any
    router: Any

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        self.length = config.inner_len or config.seq_len
        self.width = config.inner_dim or dim
        over_tokens = config.token_experts
        over_channels = config.channel_experts
        self.token_router = build_router(config.router, self.length, over_tokens, generator)
        self.router = build_router(config.router, self.width, over_channels, generator)
        self.balance = build_balance(config.balance)
        rule = {"method": "priority", "by": config.priority}
        self.overflow = build_overflow(rule, config.capacity_factor)
        hidden = config.token_hidden_dim
        self.token_up_proj = normal_parameter((over_tokens, hidden, self.length), generator)
        self.token_down_proj = normal_parameter((over_tokens, self.length, hidden), generator)
        hidden = config.channel_hidden_dim
        self.up_proj = normal_parameter((over_channels, hidden, self.width), generator)
        self.down_proj = normal_parameter((over_channels, self.width, hidden), generator)
        self.norm = RMSNorm(self.width, config.norm_eps)
        if config.inner_len is not None:
            self.len_in = normal_parameter((self.length, config.seq_len), generator, config.seq_len**-0.5)
            self.len_out = normal_parameter((config.seq_len, self.length), generator, self.length**-0.5)
        if config.inner_dim is not None:
            self.dim_in = normal_parameter((self.width, dim), generator, dim**-0.5)
            self.dim_out = normal_parameter((dim, self.width), generator, self.width**-0.5)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[B * S, D] -> [B * S, D]. The routing is the second stage's; losses of the first are named `mixing.`.

        Raises `MixwellError` for padding and for rows of another length.
        """
        u = self._resized(rows_of(x_TD, context, self.config.seq_len), "in")
        rows = u.shape[0]
        # a row's channels are the tokens of the first stage, of which nothing else is known
        unknown = replace(context, token_ids_T=None, mask_T=None, positions_T=None, labels_T=None, state=None)
        columns = u.transpose(1, 2).reshape(-1, self.length)
        of_channels = replace(unknown, batch_shape=(rows, self.width))
        across = self._stage("token_", columns, of_channels)
        a = across.y_TD.view(rows, self.width, self.length).transpose(1, 2)
        resized = self.config.inner_len is not None
        inner = replace(unknown, batch_shape=(rows, self.length)) if resized else context
        along = self._stage("", self.norm(u + a).flatten(0, 1), inner)
        y = self._resized(a + along.y_TD.view_as(a), "out")
        mixing = {f"mixing.{name}": loss for name, loss in across.losses.items()}
        terms = [stage.aux for stage in (across, along) if stage.aux is not None]
        aux = torch.stack(terms).sum() if terms else None
        routing = None if resized else along.routing
        return Mixed(y.reshape(x_TD.shape), routing, {**along.losses, **mixing}, aux)

    def _stage(self, prefix: str, x_TD: Tensor, context: Context) -> Mixed:
        """One of the two mixtures, by the prefix of its router's and weights' names."""
        router = getattr(self, f"{prefix}router")
        up = getattr(self, f"{prefix}up_proj")
        down = getattr(self, f"{prefix}down_proj")
        unlimited = router(x_TD, context)
        routing = self.overflow(unlimited, context)
        y_TD = routed_mlp(x_TD, routing, up, down, nn.functional.gelu)
        losses, aux = apply_balance(self.balance, unlimited, context)
        return Mixed(y_TD, routing, losses, aux)

    def _resized(self, x_BSD: Tensor, way: str) -> Tensor:
        if self.config.inner_dim is not None:
            x_BSD = linear(x_BSD, getattr(self, f"dim_{way}"))
        if self.config.inner_len is not None:
            over_positions = getattr(self, f"len_{way}")
            x_BSD = over_positions.to(x_BSD.dtype) @ x_BSD
        return x_BSD

    def flops_per_token(self) -> float:
        """(C' S' / S) (4 K F1 + 4 K F2 + 2 E1 + 2 E2), and 4 C' D and 4 S' C' for the outer maps there are."""
        c = self.config
        across = self.token_router.experts_per_token * c.token_hidden_dim
        along = self.router.experts_per_token * c.channel_hidden_dim
        routers = c.token_experts + c.channel_experts
        each = 4.0 * (across + along) + 2.0 * routers
        outer_dim = self.dim if c.inner_dim else 0
        outer_len = self.length if c.inner_len else 0
        inner = each * self.width * self.length / c.seq_len
        return inner + 4.0 * self.width * (outer_dim + outer_len)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two rows of four positions of width six."""
    config = Config(seq_len=4, token_experts=2, channel_experts=3, token_hidden_dim=5, channel_hidden_dim=7)
    x_TD = torch.randn(8, 6, generator=generator)
    context = Context(batch_shape=(2, 4))
    return {"dim": 6, "config": config, "x_TD": x_TD, "context": context}
