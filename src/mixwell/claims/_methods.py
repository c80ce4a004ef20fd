"""Methods of the catalogue by name, built and called as claims need them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mixwell.core import registry
from mixwell.core.routing import Context

STARTED_AT = 0.02  # standard deviation of the weights of experts that are built


def build(name: str, *arguments: Any, generator: torch.Generator | None = None, **options: Any) -> Any:
    """The module that `name` stands for: arguments (width, number of experts), options, and the generator of its
    weights."""
    entry = registry.find(name)
    config = entry.module().Config(**options)
    return entry.load()(*arguments, config, generator)


def call(name: str, *arguments: Any, context: Context | None = None, **options: Any) -> Any:
    """What the function that `name` stands for gives: a balance rule, an analysis."""
    entry = registry.find(name)
    config = entry.module().Config(**options)
    return entry.load()(*arguments, config, context or Context())


@torch.no_grad()
def widen(parameters: Iterable[Tensor]) -> None:
    """Bring weights from 0.02 to 1 / sqrt(fan in), so that a few hundred steps train them."""
    for parameter in parameters:
        fan_in = parameter.shape[-1]
        parameter.mul_(fan_in**-0.5 / STARTED_AT)


def with_aux(loss: Tensor, aux: Tensor | None) -> Tensor:
    """The loss with what a layer adds to it, if anything."""
    return loss if aux is None else loss + aux
