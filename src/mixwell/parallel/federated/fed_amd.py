"""FedAMD: of the clients asked, some anchor large-batch gradients, the others mine along what all have anchored.

**Equation:** the server keeps v_i of every client, at round 0 its gradient on a large batch. Of those asked each is an
    anchor with chance p, and answers v_i = grad f_i(x) on a large batch; the others get g_0 = mean_i v_i over ALL
    clients and take K steps x_{k+1} = x_k - lr g_k, g_k = g_{k-1} + grad_B(x_k) - grad_B(x_{k-1}), one batch B for
    both. Server: x += s mean over the miners of (x_K - x).
**Shapes:** tensors by name; v a stack [C, ...] of each.
**Reference:** Wu et al. 2023 (2206.05891), algorithm 1; the released code's `fedamd.py`.
**Differs:** anchors of a `period` come in rounds 0, period, 2 period, ... (the released script cannot run that case);
    miners count alike in the mean, as in the paper; a rule of `aggregation` may stand in place of both means.
**Fails when:** clients are so many against those asked that v is stale; steps are so long that x leaves the place where
    v was taken.
**Cost:** round 0 asks everyone; a miner's step takes two gradients, and it gets 2 P numbers where an anchor gets P.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_least, check_rate
from mixwell.parallel.federated._example import federation
from mixwell.parallel.federated.clients import Client, Tensors, batches
from mixwell.parallel.federated.learning import (
    Learning,
    Loss,
    Task,
    below,
    change,
    gradient,
    moved,
    prefixed,
    stepped,
    together,
    unstacked,
    with_rows,
)
from mixwell.parallel.federated.simulation import Answer, Answers, Federated, Turn


@dataclass(frozen=True, kw_only=True)
class Config(Learning):
    """Options of FedAMD, beside those of `Learning`."""

    lr: float = 0.01
    batch_size: int = 64  # b, of a miner's step
    anchor: float = 0.2  # p, chance that a client that is asked anchors, 0 up to 1
    period: int | None = None  # rounds from one in which all anchor to the next, in the place of chance
    anchor_size: int | None = None  # rows of an anchor's gradient; None: all that it has

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate(self, "anchor")
        check_least(self, period=2, anchor_size=1)


def mined(loss: Loss, x: Tensors, g: Tensors, parts: Iterable[Any], lr: float) -> Tensors:
    """x after the steps of a miner, the first along g, one with each batch after."""
    before, x = x, stepped(x, g, lr)
    for rows in parts:
        here = gradient(loss, x, rows)
        there = gradient(loss, before, rows)
        g = moved(g, change(here, there))
        before, x = x, stepped(x, g, lr)
    return x


@method(
    title="FedAMD: anchors and miners under partial participation",
    paper="Anchor Sampling for Federated Learning with Partial Client Participation",
    year=2023,
    tags={"rules"},
)
class FedAMD(Federated):
    """See the module's card. The state holds `x.` and, stacked over the clients, `v.`."""

    def __init__(self, task: Task, config: Config) -> None:
        self.task = task
        self.config = config

    def start(self, clients: Sequence[Client], generator: torch.Generator) -> Tensors:
        """The task's tensors, and no gradient."""
        x = self.task.start
        v = {name: tensor.new_zeros(len(clients), *tensor.shape) for name, tensor in x.items()}
        return prefixed("x", x) | prefixed("v", v)

    def asked(self, state: Tensors, drawn: Sequence[Client], everyone: Sequence[Client], turn: Turn,
              ) -> Sequence[Client]:
        """All clients in the first round."""
        return drawn if turn.number else everyone

    def anchors(self, client: Client, turn: Turn) -> bool:
        """Whether a client that is asked anchors."""
        if turn.number == 0:
            return True
        if self.config.period is not None:
            return turn.number % self.config.period == 0
        coin = torch.rand((), generator=turn.draws("anchor", client.number))
        return float(coin) < self.config.anchor

    def message(self, state: Tensors, client: Client, turn: Turn) -> Tensors:
        """x, and the mean of what is anchored for a miner."""
        x = prefixed("x", below("x", state))
        if self.anchors(client, turn):
            return x
        anchored = unstacked(below("v", state))
        g = self.alike(anchored)
        return x | prefixed("g", g)

    def model(self, state: Tensors) -> Tensors:
        """x."""
        return below("x", state)

    def answer(self, client: Client, message: Tensors, memory: Tensors, turn: Turn) -> Answer:
        """An anchor's gradient, or how far a miner went."""
        config, rows = self.config, client.rows
        draws = turn.draws("batches", client.number)
        x, g = below("x", message), below("g", message)
        if not g:
            size = config.anchor_size or len(rows)
            (large,) = batches(rows, size, 1, draws)
            anchor = gradient(self.task.loss, x, large)
            return Answer(prefixed("v", anchor), 1)
        parts = batches(rows, config.batch_size, config.steps - 1, draws)
        after = mined(self.task.loss, x, g, parts, config.lr)
        step = change(after, x)
        return Answer(prefixed("step", step), 1)

    def merged(self, state: Tensors, answers: Answers, turn: Turn) -> Tensors:
        """The anchors kept, and a step along what the miners say."""
        x, v = below("x", state), below("v", state)
        steps = list(said("step", answers).values())
        if steps:
            step = self.alike(steps)
            x = moved(x, step, self.config.server_lr)
        v = with_rows(v, said("v", answers))
        return prefixed("x", x) | prefixed("v", v)

    def alike(self, said: Sequence[Tensors]) -> dict[str, Tensor]:
        """What clients said made one, none counting more than another."""
        ones = [1.0] * len(said)
        return together(said, ones, self.config.aggregation)


def said(prefix: str, answers: Answers) -> dict[int, dict[str, Tensor]]:
    """What those said who said something of that kind, by client."""
    found = {}
    for own, answer in answers.items():
        tensors = below(prefix, answer.tensors)
        if tensors:
            found[own] = tensors
    return found


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five clients, of whom four in ten anchor."""
    return {**federation(generator), "config": Config(lr=0.1, steps=3, batch_size=4, anchor=0.4)}
