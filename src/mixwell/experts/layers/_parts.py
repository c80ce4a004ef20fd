"""The contract of layers that stand where a feed-forward block stood, and what they share.

Legend: T tokens, D width, F hidden width, E experts, N rows sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mixwell.core import registry
from mixwell.core.blocks import normal
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.kernels import Weight, expert_mlp, linear
from mixwell.core.packing import weight_of
from mixwell.core.routing import Context, Routing, combine, dispatch, plan
from mixwell.experts.overflow._parts import expert_capacity


class Mixed(NamedTuple):
    """What a layer gives back."""

    y_TD: Tensor
    routing: Routing | None = None  # None where the layer routes no discrete choice
    losses: Mapping[str, Tensor] = {}  # auxiliary losses by name, before their coefficients
    aux: Tensor | None = None  # sum of coefficient times loss; None where nothing is to be added


class ChannelMixer(nn.Module):
    """A layer acts on each token's channels: `forward(x_TD, context) -> Mixed`.

    Built as `Layer(dim, config, generator)`. `flops_per_token()` counts two for each multiply-add of one forward pass.
    """

    dim: int
    config: Any

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """Mix the channels of tokens [T, D]."""
        raise NotImplementedError

    def flops_per_token(self) -> float:
        """Forward FLOPs per token, active experts only."""
        raise NotImplementedError

    def after_step(self, routings: Sequence[Routing]) -> None:
        """Called after each optimiser step with the routings of its forward passes; routers follow their load here."""
        router = getattr(self, "router", None)
        if routings and hasattr(router, "update"):
            router.update(torch.stack([routing.load_E() for routing in routings]).sum(0))  # type: ignore[union-attr]


class Gate(nn.Module):
    """A linear map whose parameters and result stay float32 or better, for what decides between experts."""

    keep_float32: ClassVar[bool] = True  # read by whoever casts a model

    def __init__(self, dim: int, outputs: int, generator: torch.Generator | None = None, *, bias: bool = False,
                 std: float = 0.02) -> None:
        super().__init__()
        self.weight = normal_parameter((outputs, dim), generator, std)
        self.bias = nn.Parameter(self.weight.new_zeros(outputs)) if bias else None

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, outputs]."""
        x_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        return nn.functional.linear(x_TD, self.weight.to(x_TD.dtype), self.bias)


def normal_parameter(shape: tuple[int, ...], generator: torch.Generator | None, std: float = 0.02) -> nn.Parameter:
    """A float32 parameter of normal draws, std 0.02 unless told."""
    return nn.Parameter(normal(shape, std, generator))


def build_router(spec: Mapping[str, Any], dim: int, num_experts: int, generator: torch.Generator | None) -> nn.Module:
    """Build the router that `spec` names: {"method": "top_k", ...its options}."""
    options = dict(spec)
    entry = registry.find(str(options.pop("method", "top_k")), "experts.routers")
    config = from_dict(entry.module().Config, options, f"router {entry.name}")
    try:
        return entry.load()(dim, num_experts, config, generator)
    except MixwellError:
        raise
    except ValueError as error:
        raise MixwellError(f"router {entry.name}: {error}") from error


def build_overflow(spec: Mapping[str, Any],
                   capacity_factor: float | None) -> Callable[[Routing, Context], Routing]:
    """What empties the slots beyond capacity, by the rule that `spec` names; the identity where there is no limit."""
    options = dict(spec)
    entry = registry.find(str(options.pop("method", "drop")), "experts.overflow")
    config = from_dict(entry.module().Config, options, f"overflow {entry.name}")
    if capacity_factor is None:
        return lambda routing, context: routing
    rule = entry.load()

    def limit(routing: Routing, context: Context) -> Routing:
        tokens, k = routing.indices_TK.shape
        capacity = expert_capacity(capacity_factor, tokens, k, routing.num_experts)
        return rule(routing, config, capacity, context)

    return limit


def build_dropout(rate: float) -> Callable[[Tensor, Context], Tensor] | None:
    """Dropout of experts' hidden units [N, F] at `rate`; None where it is 0."""
    entry = registry.find("experts.hidden_dropout")
    config, rule = from_dict(entry.module().Config, {"rate": rate}, "expert_dropout"), entry.load()
    return (lambda h_NF, context: rule(h_NF, config, context)) if rate else None


def default_balance(router: nn.Module) -> dict[str, float]:
    """The balance rules of a mixture that names none: those that can act on its router."""
    return {"switch": 0.01, "z_loss": 0.001} if getattr(router, "has_logits", True) else {}


@dataclass(frozen=True)
class BalanceRule:
    """One balance rule with its coefficient."""

    name: str  # short name, as in the recipe
    coefficient: float
    rule: Any
    config: Any = field(default=None)
    buffer: Any = field(default=None)  # what a rule gathers over the forward passes of a step; one for each layer

    def __call__(self, routing: Routing, context: Context) -> Tensor:
        """The loss before its coefficient. Only training passes, which have a generator, enter the buffer."""
        gathers = {} if self.buffer is None or context.generator is None else {"buffer": self.buffer}
        return self.rule(routing, self.config, context, **gathers)


def build_balance(spec: Mapping[str, Any]) -> tuple[BalanceRule, ...]:
    """Rules from {"switch": 0.01, "z_loss": 0.001} or {"switch": {"coefficient": 0.01, ...options}}.

    A coefficient of 0 is measured and reported but adds nothing.
    """
    rules = []
    for name, value in spec.items():
        options = dict(value) if isinstance(value, Mapping) else {"coefficient": value}
        coefficient = options.pop("coefficient", None)
        if isinstance(coefficient, bool) or not isinstance(coefficient, (int, float)) or not coefficient >= 0:
            raise MixwellError(f"balance.{name}: expected a coefficient of 0 or more, got {coefficient!r}.")
        entry = registry.find(name, "experts.balance")
        module = entry.module()
        config = from_dict(module.Config, options, f"balance.{name}")
        buffer = module.Buffer() if hasattr(module, "Buffer") else None
        rules.append(BalanceRule(name, float(coefficient), entry.load(), config, buffer))
    return tuple(rules)


def apply_balance(rules: tuple[BalanceRule, ...], routing: Routing,
                  context: Context) -> tuple[dict[str, Tensor], Tensor | None]:
    """(losses by name, sum of coefficient times loss or None), the router's own losses included at coefficient 1."""
    losses = {**routing.losses}
    terms = list(routing.losses.values())
    for rule in rules:
        losses[rule.name] = rule(routing, context)
        if rule.coefficient:
            terms.append(rule.coefficient * losses[rule.name])
    return losses, torch.stack([t.float() for t in terms]).sum() if terms else None


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": nn.functional.gelu}


def check_least(config: Any, **least: int) -> None:
    """Refuse a field of `config` below its least value."""
    for name, value in least.items():
        if getattr(config, name) < value:
            raise ValueError(f"{name} is {getattr(config, name)}; expected at least {value}")


def routed_swiglu(layer: nn.Module, x_TD: Tensor, routing: Routing) -> Tensor:
    """The tokens through the SwiGLU experts they chose: the layer's gate_up_proj [E, 2 F, D], down_proj [E, D, F]."""
    order = plan(routing.indices_TK, routing.num_experts)
    rows = expert_mlp(dispatch(x_TD, order), order.counts_E, weight_of(layer, "gate_up_proj"),
                      weight_of(layer, "down_proj"))
    return combine(rows, order, routing.weights_TK)


def routed_mlp(x_TD: Tensor, routing: Routing, up_proj: Weight, down_proj: Weight,
               activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The tokens through the two-matrix experts that they chose: up_proj [E, F, D], down_proj [E, D, F]."""
    order = plan(routing.indices_TK, routing.num_experts)
    counts = order.counts_E.tolist()
    parts = dispatch(x_TD, order).split(counts)
    rows = [linear(activation(linear(part, up)), down)
            for part, up, down in zip(parts, _experts_of(up_proj), _experts_of(down_proj)) if part.shape[0]]
    return combine(torch.cat(rows) if rows else x_TD[:0], order, routing.weights_TK)


def _experts_of(weight: Weight) -> list[Weight]:
    """One weight for each expert; a plain stack is unbound in one step, so that its gradient is written once."""
    return list(weight.unbind(0)) if isinstance(weight, Tensor) else [weight[e] for e in range(weight.shape[0])]
