"""Experts of unequal width: small ones for easy tokens, large ones for hard ones.

**Equation:** y = sum_{i in I(x)} w_i(x) E_i(x), with E_i of width F_i, sum_i F_i = E F. Arithmetic: F_i in proportion
    to 1 + (r - 1) i / (E - 1); geometric: to r^(i / (E - 1)); r the ratio of the largest to the smallest.
**Shapes:** x [T, D]; gate_up_proj [2 sum F, D], expert by expert, each its gate above its up; down_proj [D, sum F].
**Reference:** Wang et al. 2024, HMoE (2408.10681), section 3.
**Differs:** sizes come from a ratio (or a list) instead of the paper's fixed ladders, and sum exactly to E F; SwiGLU.
    The parameter penalty (`experts.balance.parameter_penalty`) gets the layer's sizes where it is given none. All start
    normal with std 0.02.
**Fails when:** trained without the penalty: large experts win, and the compute is not saved.
**Cost:** 6 D times the summed widths of the chosen experts, per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, combine, dispatch, plan
from mixwell.experts.layers._parts import ChannelMixer
from mixwell.kernels.experts import mlp
from mixwell.mixing import (
    Mixed,
    apply_balance,
    build_balance,
    build_router,
    check_least,
    default_balance,
    normal_parameter,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the mixture of unequal experts."""

    num_experts: int  # E
    hidden_dim: int  # F, mean width of the experts
    progression: Literal["arithmetic", "geometric"] = "arithmetic"  # how widths grow from the first expert to the last
    ratio: float = 2.5  # r, width of the last expert over the first, at least 1; 1 makes them equal
    widths: tuple[int, ...] | None = None  # F_i written out; replaces progression and ratio, mean hidden_dim
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})
    # rule -> coefficient; default: parameter_penalty 0.01 and z_loss 0.001, nothing for routers without logits
    balance: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, hidden_dim=1)
        if not self.ratio >= 1:
            raise ValueError(f"ratio is {self.ratio}; expected at least 1")
        if self.widths is not None:
            self._check_widths(self.widths)



    def _check_widths(self, widths: tuple[int, ...]) -> None:
        total = self.num_experts * self.hidden_dim
        one_each = len(widths) == self.num_experts and min(widths) >= 1
        if not one_each or sum(widths) != total:
            raise ValueError(f"widths {list(widths)} must be {self.num_experts} numbers of at least 1 that sum to "
                             f"num_experts * hidden_dim = {total}")


def growth(config: Config) -> list[float]:
    """Width of each expert over the first's: from 1 to the ratio by equal steps, or by equal factors."""
    last = max(config.num_experts - 1, 1)
    steps = [i / last for i in range(config.num_experts)]
    if config.progression == "geometric":
        return [config.ratio**step for step in steps]
    return [1 + (config.ratio - 1) * step for step in steps]


def hidden_dims(config: Config) -> tuple[int, ...]:
    """Width of each expert, smallest first; they sum to E F exactly (largest remainders), each at least 1."""
    if config.widths is not None:
        return config.widths
    experts = config.num_experts
    total = config.num_experts * config.hidden_dim
    shares = growth(config)
    whole = sum(shares)
    exact = [share * total / whole for share in shares]
    widths = [max(1, int(width)) for width in exact]
    missing = max(total - sum(widths), 0)
    rests = [width - int(width) for width in exact]
    largest_rest_first = sorted(range(experts), key=lambda i: -rests[i])
    for i in largest_rest_first[:missing]:
        widths[i] += 1
    widths[-1] -= sum(widths) - total  # where the least width of 1 took too much
    return tuple(sorted(widths))


def balance_of(config: Config, router: Any) -> dict[str, Any]:
    """The balance rules asked for, or the usual ones with the parameter penalty in the place of the Switch loss."""
    if config.balance is not None:
        return dict(config.balance)
    usual = default_balance(router)
    return {"parameter_penalty" if name == "switch" else name: c for name, c in usual.items()}


def with_sizes(balance: Mapping[str, Any], widths: tuple[int, ...]) -> dict[str, Any]:
    """The balance rules, the parameter penalty with the experts' widths where it has no sizes."""
    rules = dict(balance)
    if "parameter_penalty" in rules:
        sizes = [float(width) for width in widths]
        given = rules["parameter_penalty"]
        options = dict(given) if isinstance(given, Mapping) else {"coefficient": given}
        rules["parameter_penalty"] = {"sizes": sizes, **options}
    return rules


@method(
    title="Heterogeneous mixture of experts",
    paper="HMoE: Heterogeneous Mixture of Experts for Language Modeling",
    year=2024,
    tags={"router", "tokenwise"},
)
class HeterogeneousMoE(ChannelMixer):
    """Mixture of SwiGLU experts of unequal width; see the module's card."""

    config: Config
    router: Any

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        self.hidden_dims = hidden_dims(config)
        self.router = build_router(config.router, dim, config.num_experts, generator)
        rules = balance_of(config, self.router)
        self.balance = build_balance(with_sizes(rules, self.hidden_dims))
        width = sum(self.hidden_dims)
        self.gate_up_proj = normal_parameter((2 * width, dim), generator)
        self.down_proj = normal_parameter((dim, width), generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D], with the routing and the losses that training adds."""
        routing = self.router(x_TD, context)
        order = plan(routing.indices_TK, self.config.num_experts)
        parts = dispatch(x_TD, order).split(order.counts_E.tolist())
        y = combine(self._experts(parts, x_TD), order, routing.weights_TK)
        losses, aux = apply_balance(self.balance, routing, context)
        return Mixed(y, routing, losses, aux)

    def _experts(self, parts: Sequence[Tensor], x_TD: Tensor) -> Tensor:
        """Each expert on its own rows, one after another, [N, D]."""
        gate_ups = self.gate_up_proj.split([2 * width for width in self.hidden_dims])
        downs = self.down_proj.split(list(self.hidden_dims), dim=1)
        weights = zip(parts, gate_ups, downs)
        rows = [mlp(part, up, down) for part, up, down in weights if len(part)]
        return torch.cat(rows) if rows else x_TD[:0]

    def flops_per_token(self) -> float:
        """6 k D F for experts of the mean width, 2 D E for the router; for one batch see `flops_of`."""
        hidden = self.router.experts_per_token * self.config.hidden_dim
        return 6.0 * hidden * self.dim + self._router_flops()

    def flops_of(self, mixed: Mixed) -> float:
        """Forward FLOPs per token that this output took: 6 D F_i for each filled slot, 2 D E for the router.

        Raises `ValueError` for an output without tokens.
        """
        if mixed.routing is None or not len(mixed.routing.indices_TK):
            raise ValueError("flops_of counts the slots of an output with tokens; got none")
        load = mixed.routing.load_E().tolist()
        units = sum(slots * width for slots, width in zip(load, self.hidden_dims))
        return 6.0 * self.dim * units / len(mixed.routing.indices_TK) + self._router_flops()

    def _router_flops(self) -> float:
        return 2.0 * self.dim * self.config.num_experts


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts of widths 3 to 7."""
    config = Config(num_experts=4, hidden_dim=5, ratio=2.3)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
