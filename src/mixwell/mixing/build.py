"""Routers, overflow rules and dropout, built by their names in a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context, Routing, expert_capacity


def build_router(spec: Mapping[str, Any], dim: int, num_experts: int, generator: torch.Generator | None) -> nn.Module:
    """The router that `spec` names: {"method": "top_k", ...its options}; raises `MixwellError` for what cannot be."""
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
    config = from_dict(entry.module().Config, {"rate": rate}, "expert_dropout")
    rule = entry.load()
    return (lambda h_NF, context: rule(h_NF, config, context)) if rate else None
