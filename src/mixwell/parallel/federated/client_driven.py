"""CDFL: clients come when they like; the server tells from what each learnt which mixture of clusters it is of.

**Equation:** centres c_1..c_K. Client i was sent v = sum_k u_k c_k and comes with w, trained from v. Estimate:
    "update": e = softmax(cos(w - v, c_k - v) / T); "distance": e = softmax(-K |w - c_k|^2 / (T sum_j |w - c_j|^2)). u
    <- a u + (1 - a) e. Refined are the centres with u_k >= least: c_k <- c_k + r (w - c_k), r = b u_k (1 + age)^-p, age
    the rounds since i came last. Sent back, one model: v = sum_k u_k c_k.
**Shapes:** tensors by name; centres stacks [K, ...], what was sent stacks [C, ...]; u [C, K].
**Reference:** Li and Zhu 2024 (2405.15407).
**Differs:** the paper was read in its abstract and summaries, so that the estimates are our own: since w lies near v,
    the direction of the update says more than the place of w ("update"). Centres start as the task's tensors moved by
    small draws; those who come in one round are taken in the order of their numbers.
**Fails when:** blends of centres are no models (other starts, permuted classes); one model solves all clusters, and no
    update tells them apart.
**Cost:** P numbers each way a visit, where clustered training sends K P down; K P and C P kept at the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least, check_not_negative, check_rate
from mixwell.parallel.federated._example import federation
from mixwell.parallel.federated.clients import Client, Tensors, batches
from mixwell.parallel.federated.learning import Task, below, descended, flat, prefixed, stacked, unflat, unstacked
from mixwell.parallel.federated.simulation import Answer, Answers, Federated, Turn


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of CDFL."""

    clusters: int = 3  # K
    estimate: Literal["update", "distance"] = "update"  # what u is told from
    temperature: float = 0.2  # T
    smooth: float = 0.5  # a, of u, 0 up to 1
    refine: float = 0.5  # b, up to 1
    least: float = 0.1  # of u_k, below which a centre is left alone
    aging: float = 0.5  # p: how much less what was learnt from old models counts
    spread: float = 0.01  # of the draws that tell the centres apart at the start
    lr: float = 0.1
    steps: int = 10
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_least(self, clusters=1, steps=1, batch_size=1)
        check_above(self, temperature=0, refine=0, lr=0)
        check_rate(self, "smooth", "least")
        check_not_negative(self, "aging", "spread")
        if self.refine > 1:
            raise ValueError(f"refine is {self.refine}; expected at most 1")


def told_by_update(w_P: Tensor, v_P: Tensor, centres_KP: Tensor, temperature: float) -> Tensor:
    """e [K] from the direction in which a client went."""
    towards_KP = centres_KP - v_P
    went_1P = (w_P - v_P).unsqueeze(0)
    cosine_K = F.cosine_similarity(went_1P, towards_KP)
    return (cosine_K / temperature).softmax(0)


def told_by_distance(w_P: Tensor, v_P: Tensor, centres_KP: Tensor, temperature: float) -> Tensor:
    """e [K] from how far a client is from the centres."""
    square_K = (w_P - centres_KP).square().sum(1)
    scale = temperature * square_K.mean().clamp_min(1e-30)
    return (-square_K / scale).softmax(0)


ESTIMATES = {"update": told_by_update, "distance": told_by_distance}


@method(
    title="CDFL: client-driven federated learning",
    paper="Towards Client Driven Federated Learning",
    year=2024,
)
class ClientDriven(Federated):
    """See the module's card. The state: `centre.` and `sent.` stacks, `shares` u, `came`: the last visits."""

    def __init__(self, task: Task, config: Config) -> None:
        self.task = task
        self.config = config

    def start(self, clients: Sequence[Client], generator: torch.Generator) -> Tensors:
        """Centres near the task's tensors, in equal shares for all."""
        config = self.config
        whole_P = flat(self.task.start)
        K, count = config.clusters, len(clients)
        drawn_KP = torch.randn(K, len(whole_P), generator=generator)
        away_KP = config.spread * drawn_KP.to(whole_P.dtype)
        centres_KP = whole_P + away_KP
        shares_CK = whole_P.new_full((count, K), 1 / K)
        sent_CP = shares_CK @ centres_KP
        came_C = torch.full((count,), -1)
        return self._state(centres_KP, sent_CP, shares_CK, came_C)

    def _state(self, centres_KP: Tensor, sent_CP: Tensor, shares_CK: Tensor, came_C: Tensor) -> dict[str, Tensor]:
        centres = prefixed("centre", self._named(centres_KP))
        sent = prefixed("sent", self._named(sent_CP))
        facts = {"shares": shares_CK, "came": came_C}
        return {**centres, **sent, **facts}

    def _named(self, rows_NP: Tensor) -> dict[str, Tensor]:
        models = [unflat(row_P, self.task.start) for row_P in rows_NP]
        return stacked(models)

    def message(self, state: Tensors, client: Client, turn: Turn) -> Tensors:
        """The model that was sent when the client came last."""
        sent = below("sent", state)
        return {name: stack[client.number] for name, stack in sent.items()}

    def before(self, state: Tensors, client: Client, turn: Turn) -> Tensors:
        """The same."""
        return self.message(state, client, turn)

    def answer(self, client: Client, message: Tensors, memory: Tensors, turn: Turn) -> Answer:
        """What the client made of it."""
        config, rows = self.config, client.rows
        draws = turn.draws("batches", client.number)
        parts = batches(rows, config.batch_size, config.steps, draws)
        loss = self.task.loss
        after = descended(loss, message, parts, config.lr)
        return Answer(after, len(rows))

    def merged(self, state: Tensors, answers: Answers, turn: Turn) -> Tensors:
        """Shares, centres and what is sent back, one client after another."""
        centres_KP = rows_of(below("centre", state))
        sent_CP = rows_of(below("sent", state))
        shares_CK = state["shares"].clone()
        came_C = state["came"].clone()
        for own, answer in answers.items():
            w_P = flat(answer.tensors)
            u_K = self.told(shares_CK[own], w_P, sent_CP[own], centres_KP)
            age = turn.number - 1 - int(came_C[own])
            centres_KP = self.refined(centres_KP, w_P, u_K, age)
            shares_CK[own] = u_K
            sent_CP[own] = u_K @ centres_KP
            came_C[own] = turn.number
        return self._state(centres_KP, sent_CP, shares_CK, came_C)

    def told(self, u_K: Tensor, w_P: Tensor, v_P: Tensor, centres_KP: Tensor) -> Tensor:
        """u after a visit."""
        config = self.config
        estimate = ESTIMATES[config.estimate]
        fresh_K = estimate(w_P, v_P, centres_KP, config.temperature)
        return torch.lerp(fresh_K, u_K, config.smooth)

    def refined(self, centres_KP: Tensor, w_P: Tensor, u_K: Tensor, age: int) -> Tensor:
        """The centres, those that are the client's moved to what it learnt."""
        config = self.config
        stale = (1 + age) ** -config.aging
        belongs_K = u_K >= config.least
        own_K = torch.where(belongs_K, u_K, 0)
        rate_K = config.refine * stale * own_K
        away_KP = w_P - centres_KP
        step_KP = rate_K[:, None] * away_KP
        return centres_KP + step_KP


def rows_of(stacks: Tensors) -> Tensor:
    """All numbers of each row [N, P]."""
    rows = [flat(tensors) for tensors in unstacked(stacks)]
    return torch.stack(rows)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five clients of two clusters."""
    return {**federation(generator), "config": Config(clusters=2, steps=3, batch_size=4)}
