"""Activation checkpointing: a layer keeps its input alone and is computed again when its gradient is due.

The second pass is the first one bit for bit: it draws the same numbers, and what counts tokens does not count again
(`Context.again`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.routing import Context


def checkpointed(layer: nn.Module) -> Callable[..., Any]:
    """The layer as a function of the same arguments that keeps no activations of its own for the backward pass."""
    # torch keeps any structure of results this way; its other form hands on tensors alone.
    from torch.utils.checkpoint import checkpoint

    def run(x_BTD: Tensor, positions_BT: Tensor, cache: Any, mask_BT: Tensor | None, context: Context) -> Any:
        once = _Twice(layer, context)
        return checkpoint(once, x_BTD, positions_BT, cache, mask_BT, use_reentrant=False, preserve_rng_state=False)

    return run


class _Twice:
    """A layer in its context: computed as it stands the first time, and again with the same draws after that."""

    def __init__(self, layer: nn.Module, context: Context) -> None:
        self.layer, self.context = layer, context
        draws = context.generator
        self.drawn = None if draws is None else draws.get_state()
        self.passes = 0

    def __call__(self, *arguments: Any) -> Any:
        self.passes += 1
        if self.passes == 1:
            return self.layer(*arguments, self.context)
        return self._repeat(arguments)

    def _repeat(self, arguments: tuple[Any, ...]) -> Any:
        own = self.context.generator
        draws = None if own is None or self.drawn is None else _from_state(own, self.drawn)
        context = replace(self.context, generator=draws, again=True)
        return self.layer(*arguments, context)


def _from_state(like: torch.Generator, state: Tensor) -> torch.Generator:
    """A generator of its own that draws on from `state`, so that the first one is not moved."""
    found = torch.Generator(like.device)
    return found.set_state(state)
