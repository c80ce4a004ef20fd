"""The Switch loss with the load of the global batch: balance is asked of the corpus and not of every sequence.

**Equation:** L = N sum_i f_i P_i, with f_i the share of slots of expert i over the micro-batches of all ranks and of
    all accumulation steps so far, and P_i the mean probability in this micro-batch.
**Shapes:** scores [T, E], indices [T, K] -> scalar.
**Reference:** Qiu et al. 2025 (2501.11873), section 2, with its buffer for accumulation steps.
**Differs:** f is the share of slots, 1 / N at balance for every K, weighted by tokens and not by micro-batches, which
    matters with padding only. The buffer starts anew when `Context.step` moves on.
**Fails when:** a forward pass is repeated for activation checkpointing: the buffer then counts its tokens twice. With
    ranks, every rank must call it equally often.
**Cost:** O(T E), and one all-reduce of E numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.balance._parts import example_routing, mean_scores


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the global-batch loss."""

    across_ranks: bool = True  # sum the load over the ranks of torch.distributed, where it is set up


class Buffer:
    """The load counted since the last optimiser step; one for each layer, kept by whoever holds the layer."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.load_E: Tensor | None = None

    def add(self, load_E: Tensor, step: int, again: bool = False) -> Tensor:
        """Add one micro-batch's load and return the sum over those of the same optimiser step.

        again: the micro-batch is the last one, repeated for its gradient; it is in the sum already.
        """
        if again and self.load_E is not None:
            return self.load_E
        if self.step != step or self.load_E is None:
            self.step = step
            self.load_E = torch.zeros_like(load_E)
        self.load_E = self.load_E + load_E
        return self.load_E


def reduced(load_E: Tensor) -> Tensor:
    """The load summed over all ranks; as it is where there is one process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return load_E
    total = load_E.clone()
    distributed.all_reduce(total)
    return total


@method(
    title="Global-batch balance loss",
    paper="Demons in the Detail: On Implementing Load Balancing Loss for Training Specialized Mixture-of-Expert Models",
    year=2025,
    tags={"one-at-balance"},
)
def global_batch(routing: Routing, config: Config, context: Context, buffer: Buffer | None = None) -> Tensor:
    """N sum_i f_i P_i as a scalar. Without a buffer f is that of this micro-batch (over all ranks)."""
    load = routing.load_E(context.mask_T)
    if config.across_ranks and context.peers is None:  # where there are peers, the tokens of all are here
        load = reduced(load)
    if buffer is not None:
        load = buffer.add(load, context.step, context.again)
    total = load.sum().clamp_min(1)
    share = load.to(routing.scores_TE.dtype) / total
    agreement = share * mean_scores(routing, context)
    return routing.num_experts * agreement.sum()


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens over four experts, two each."""
    return {"routing": example_routing(generator), "config": Config(), "context": Context()}
