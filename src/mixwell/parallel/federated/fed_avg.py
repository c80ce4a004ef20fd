"""Federated averaging: clients descend from the server's model, the server takes the mean of where they came.

**Equation:** client c, K steps on batches of its own: x_c = x - lr sum_k grad f_c(x_k). Server: x += s sum_c n_c (x_c -
    x) / sum_c n_c over those who answered; any rule of `aggregation` may stand in the place of the mean.
**Shapes:** tensors by name, as the task has them.
**Reference:** McMahan et al. 2017 (1602.05629), algorithm 1.
**Differs:** a number of steps, not of epochs, so that clients of unequal size work alike.
**Fails when:** clients' rows differ and K is large: each runs to its own optimum (drift), and the mean is none of them.
**Cost:** P numbers to each client and back a round; K gradients each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mixwell.core.method import method
from mixwell.parallel.federated._example import federation
from mixwell.parallel.federated.learning import Averaging, Learning


@dataclass(frozen=True, kw_only=True)
class Config(Learning):
    """Options of federated averaging: those of `Learning`."""


@method(title="Federated averaging", year=2017, tags={"rules"})
class FedAvg(Averaging):
    """See the module's card."""


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five clients that fit a line each."""
    return {**federation(generator), "config": Config(steps=3, batch_size=4)}
