"""MoNNA: peers that average momentum locally and models with those nearest to their own, so that lies count little.

**Equation:** peer i: m_i = b m_i + (1 - b) grad f_i(theta_i); theta_i' = theta_i - lr_t m_i, which all others hear. Of
    the n models heard, its own among them, the n - f nearest to theta_i' (Euclidean, over all numbers) are averaged:
    theta_i = their mean. lr_t = lr / (1 + floor(t / decay_every)).
**Shapes:** tensors by name, a stack [C, ...] of all peers' models in the state.
**Reference:** Farhadkhani et al. 2023 (2209.10931), algorithm 1; the released code's `cva` aggregator.
**Differs:** everybody hears everybody who answers and keeps all but f of them; the released simulation lets each hear n
    - f and keep n - 2f. Liars are the runner's, who know what the honest say, and tell all peers the same.
**Fails when:** liars are as near as honest peers of other data: f of them must be few against the spread that
    heterogeneous rows and noise make (momentum takes the noise away).
**Cost:** O(n P) a peer and round, linear in n; P numbers to each of n - 1 peers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, check_not_negative, check_rate
from mixwell.parallel.federated._example import federation
from mixwell.parallel.federated.aggregation import nearest_mixing, require
from mixwell.parallel.federated.clients import Client, Tensors, batches
from mixwell.parallel.federated.learning import Task, flat, gradient, stepped, unflat, with_rows
from mixwell.parallel.federated.simulation import Answer, Answers, Federated, Turn


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of MoNNA."""

    lr: float = 0.75
    decay_every: int = 50  # rounds after which lr is divided by 2, by 3, ...; 0: never
    momentum: float = 0.99  # b, 0 up to 1
    weight_decay: float = 1e-4  # added to the gradient, times the model
    batch_size: int = 25
    faulty: int = 0  # f, peers that may lie

    def __post_init__(self) -> None:
        check_above(self, lr=0)
        check_rate(self, "momentum")
        check_not_negative(self, "weight_decay")
        check_least(self, decay_every=0, batch_size=1, faulty=0)


def averaged(momentum: Tensors, grads: Tensors, model: Tensors, config: Config) -> dict[str, Tensor]:
    """m after a gradient."""
    fresh = 1 - config.momentum
    found = {}
    for name, grad in grads.items():
        pulled = grad + config.weight_decay * model[name]
        found[name] = config.momentum * momentum[name] + fresh * pulled
    return found


def averages(stacks: Tensors) -> dict[str, Tensor]:
    """The mean over all peers of each tensor."""
    pairs = stacks.items()
    return {name: stack.mean(0) for name, stack in pairs}


def nearest_neighbours(models_CP: Tensor, faulty: int) -> Tensor:
    """What each peer makes of the models that all heard [C, P]: the mean of the C - f nearest to its own."""
    require(models_CP, 2 * faulty + 1, faulty)
    return nearest_mixing(models_CP, faulty)


@method(
    title="MoNNA: momentum and nearest-neighbour averaging among peers",
    paper="Robust Collaborative Learning with Linear Gradient Overhead",
    year=2023,
)
class MoNNA(Federated):
    """See the module's card. The state holds all peers' models, stacked."""

    by_peers = True

    def __init__(self, task: Task, config: Config) -> None:
        self.task = task
        self.config = config

    def start(self, clients: Sequence[Client], generator: torch.Generator) -> Tensors:
        """Every peer has the task's tensors."""
        count = len(clients)
        return {name: torch.stack([tensor] * count) for name, tensor in self.task.start.items()}

    def remembered(self, client: Client) -> Tensors:
        """No momentum."""
        pairs = self.task.start.items()
        return {name: torch.zeros_like(tensor) for name, tensor in pairs}

    def message(self, state: Tensors, client: Client, turn: Turn) -> Tensors:
        """Its own model, which it has."""
        own = client.number
        return {name: stack[own] for name, stack in state.items()}

    def model(self, state: Tensors) -> Tensors:
        """The mean of the peers' models."""
        return averages(state)

    def before(self, state: Tensors, client: Client, turn: Turn) -> Tensors:
        """Where the peers stood, in the mean."""
        return averages(state)

    def answer(self, client: Client, message: Tensors, memory: Tensors, turn: Turn) -> Answer:
        """Its model after a step along its momentum."""
        config = self.config
        draws = turn.draws("batches", client.number)
        (rows,) = batches(client.rows, config.batch_size, 1, draws)
        grads = gradient(self.task.loss, message, rows)
        momentum = averaged(memory, grads, message, config)
        halvings = turn.number // config.decay_every if config.decay_every else 0
        lr = config.lr / (1 + halvings)
        after = stepped(message, momentum, lr)
        return Answer(after, len(client.rows), momentum)

    def merged(self, state: Tensors, answers: Answers, turn: Turn) -> Tensors:
        """All peers that answered average; one that left keeps its model."""
        heard = [answer.tensors for answer in answers.values()]
        rows = [flat(tensors) for tensors in heard]
        models_CP = torch.stack(rows)
        means_CP = nearest_neighbours(models_CP, self.config.faulty)
        means = [unflat(mean_P, heard[0]) for mean_P in means_CP]
        return with_rows(state, dict(zip(answers, means)))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five peers, one of whom may lie."""
    return {**federation(generator), "config": Config(lr=0.3, momentum=0.5, batch_size=4, faulty=1)}
