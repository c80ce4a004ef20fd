"""Balance rules built by their names in a recipe, and their sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context, Routing


def default_balance(router: nn.Module) -> dict[str, float]:
    """The balance rules of a mixture that names none: those that can act on its router."""
    if not getattr(router, "has_logits", True):
        return {}
    return {"switch": 0.01, "z_loss": 0.001}


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
        training = context.generator is not None
        if self.buffer is None or not training:
            return self.rule(routing, self.config, context)
        return self.rule(routing, self.config, context, buffer=self.buffer)


def build_balance(spec: Mapping[str, Any]) -> tuple[BalanceRule, ...]:
    """Rules from {"switch": 0.01, "z_loss": 0.001} or {"switch": {"coefficient": 0.01, ...options}}.

    A coefficient of 0 is measured and reported but adds nothing. Raises `MixwellError` for an unknown rule or option,
    and for a coefficient that is no number of 0 or more.
    """
    rules = [_build_rule(name, value) for name, value in spec.items()]
    return tuple(rules)


def _build_rule(name: str, value: Any) -> BalanceRule:
    options = dict(value) if isinstance(value, Mapping) else {"coefficient": value}
    coefficient = options.pop("coefficient", None)
    number = isinstance(coefficient, (int, float)) and not isinstance(coefficient, bool)
    if not number or not coefficient >= 0:
        raise MixwellError(f"balance.{name}: expected a coefficient of 0 or more, got {coefficient!r}.")
    entry = registry.find(name, "experts.balance")
    module = entry.module()
    config = from_dict(module.Config, options, f"balance.{name}")
    buffer = module.Buffer() if hasattr(module, "Buffer") else None
    return BalanceRule(name, float(coefficient), entry.load(), config, buffer)


def apply_balance(rules: tuple[BalanceRule, ...], routing: Routing,
                  context: Context) -> tuple[dict[str, Tensor], Tensor | None]:
    """(losses by name, sum of coefficient times loss or None), the router's own losses included at coefficient 1."""
    losses = {**routing.losses}
    terms = list(routing.losses.values())
    if rules and context.peers is not None:
        routing, context = context.peers.joined(routing, context)
    for rule in rules:
        loss = rule(routing, context)
        losses[rule.name] = loss
        if rule.coefficient:
            terms.append(rule.coefficient * loss)
    if not terms:
        return losses, None
    return losses, torch.stack([term.float() for term in terms]).sum()
