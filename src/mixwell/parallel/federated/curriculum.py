"""Curricula: each client learns from its easiest rows first, and the server may ask its easiest clients first.

**Equation:** round t of T: a client ranks its n rows by their loss under the model it was sent and draws its batches
    from the first ceil(g(t) n). With tau = min(1, t / (a T)): g = b + (1 - b) h(tau); h: tau (linear), tau^2
    (quadratic), tau^(1/2) (root), 1 + log(tau + e^-10) / 10 (log), (e^(10 tau) - 1) / (e^10 - 1) (exp), 1 where tau = 1
    else 0 (step). Otherwise federated averaging, weights n.
**Shapes:** tensors by name; losses [n].
**Reference:** Vahidian et al. 2023 (2212.12712); pacing of Wu, Dyer, Neyshabur 2021 (2012.03107).
**Differs:** the paper was read in its abstract: a, b and the ranking of clients (by the mean loss that they told last;
    those that told none yet come first) are ours. Rows are ranked anew in every round. All orders take as many steps.
**Fails when:** rows are equally hard, or hard ones are those that teach: easy first then learns from fewer rows, no
    more. "random" at the same pace is what to compare with.
**Cost:** beside averaging one forward pass of a client's rows a round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.rng import generator
from mixwell.mixing import check_above
from mixwell.parallel.federated._example import federation
from mixwell.parallel.federated.clients import Client, Tensors, counted
from mixwell.parallel.federated.learning import Averaging, Learning, row_losses
from mixwell.parallel.federated.simulation import Answer, Answers, Turn

TOLD = "told"  # losses that clients told, in the state and in answers


def _log(tau: float) -> float:
    reached = math.log(tau + math.exp(-10)) / 10
    return min(1.0, 1 + reached)


def _exp(tau: float) -> float:
    return math.expm1(10 * tau) / math.expm1(10)


PACES: Mapping[str, Callable[[float], float]] = {
    "linear": float, "quadratic": lambda tau: tau**2, "root": math.sqrt, "log": _log, "exp": _exp, "step": math.floor}


@dataclass(frozen=True, kw_only=True)
class Config(Learning):
    """Options of curricula, beside those of `Learning`."""

    order: Literal["easy", "hard", "random"] = "easy"  # which rows come first; "random": always the same, drawn once
    pace: Literal["linear", "quadratic", "root", "log", "exp", "step"] = "linear"  # h
    first: float = 0.2  # b, share of the rows at the start, up to 1
    until: float = 0.8  # a, share of the rounds after which all rows are there, up to 1
    rank_clients: bool = False  # whether clients, too, are asked in that order and at that pace

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(self, first=0, until=0)
        first, until = self.first, self.until
        if max(first, until) > 1:
            raise ValueError(f"first={first}, until={until}; expected at most 1")


def share_at(turn: Turn, config: Config) -> float:
    """g(t)."""
    span = config.until * turn.rounds
    tau = min(1.0, turn.number / span)
    pace = PACES[config.pace]
    rest = 1 - config.first
    return config.first + rest * pace(tau)


@method(
    title="Curricula of rows and of clients",
    paper="When Do Curricula Work in Federated Learning?",
    year=2023,
    tags={"rules"},
)
class Curriculum(Averaging):
    """See the module's card. With `rank_clients` the state holds the losses that clients `told`."""

    config: Config

    def start(self, clients: Sequence[Client], generator: torch.Generator) -> Tensors:
        """The task's tensors."""
        state = dict(super().start(clients, generator))
        if self.config.rank_clients:
            count = len(clients)
            state[TOLD] = torch.full((count,), -1.0, dtype=torch.float64)
        return state

    def asked(self, state: Tensors, drawn: Sequence[Client], everyone: Sequence[Client], turn: Turn,
              ) -> Sequence[Client]:
        """Of those drawn the first by their order, so many as the pace allows."""
        if not self.config.rank_clients:
            return drawn
        share = share_at(turn, self.config)
        count = counted(share, len(drawn))
        numbers = [client.number for client in drawn]
        losses = state[TOLD][numbers]
        order = self.ranked(losses, turn, "clients")
        first = order[:count].sort().values
        return [drawn[place] for place in first.tolist()]

    def ranked(self, losses_N: Tensor, turn: Turn, *keys: int | str) -> Tensor:
        """Places in the order in which they come."""
        order, count = self.config.order, len(losses_N)
        if order == "random":
            draws = generator(turn.seed, "order", *keys)
            return torch.randperm(count, generator=draws)
        hard = order == "hard"
        first = math.inf if hard else -math.inf
        known_N = torch.where(losses_N < 0, first, losses_N)
        return known_N.sort(stable=True, descending=hard).indices

    def message(self, state: Tensors, client: Client, turn: Turn) -> Tensors:
        """The model."""
        model = dict(state)
        model.pop(TOLD, None)
        return model

    def answer(self, client: Client, message: Tensors, memory: Tensors, turn: Turn) -> Answer:
        """The change after steps on the rows that have come."""
        rows = client.rows
        losses_N = row_losses(self.task, message, rows)
        count = counted(share_at(turn, self.config), len(rows))
        learner = client
        if count < len(rows):
            places = self.ranked(losses_N, turn, client.number)[:count]
            learner = replace(client, rows=rows.of(places))
        found = super().answer(learner, message, memory, turn)
        told = {TOLD: losses_N.mean()} if self.config.rank_clients else {}
        return replace(found, weight=len(rows), tensors={**found.tensors, **told})

    def merged(self, state: Tensors, answers: Answers, turn: Turn) -> Tensors:
        """A step along the combined change, and the losses told."""
        model = dict(state)
        model.pop(TOLD, None)
        if not self.config.rank_clients:
            return super().merged(model, answers, turn)
        steps, told = {}, state[TOLD].clone()
        for own, answer in answers.items():
            tensors = dict(answer.tensors)
            told[own] = tensors.pop(TOLD).clamp_min(0)
            steps[own] = replace(answer, tensors=tensors)
        after = super().merged(model, steps, turn)
        return {**after, TOLD: told}


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five clients that begin with half of their rows."""
    return {**federation(generator), "config": Config(steps=3, batch_size=3, first=0.5)}
