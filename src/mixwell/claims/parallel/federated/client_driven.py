"""CDFL: clients of drifting mixtures get better models of their own than one that is shared, for as many bytes.

Paper: Towards Client Driven Federated Learning.
Tried: twelve clients, digits turned by 0, 90 and 180 degrees in shares of each client's own, drawn from Dirichlet(0.3)
and drawn anew after half of 30 rounds; half of the clients come in a round; a net trained on some upright digits is
where all start. Accuracy of what each client was sent last on held-out digits turned in its shares. Against it: an
accuracy that is no higher than that of federated averaging.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.parallel.federated._digits import (
    accuracy,
    digits,
    loss,
    mean,
    method,
    mixed,
    net,
    shares,
    trained,
)
from mixwell.parallel.federated.clients import Client, Table, Tensors
from mixwell.parallel.federated.learning import Task, below, unstacked
from mixwell.parallel.federated.simulation import Setting, simulate

CLIENTS, CLUSTERS, HALF = 12, 3, 15


def world(train: Table, share_CK: Tensor, seed: int, time: int) -> list[Client]:
    """Clients with a hundred rows each, turned in their shares."""
    places = torch.arange(len(train))
    found = []
    for number, part in enumerate(places.chunk(CLIENTS)):
        rows = train.of(part)
        own = mixed(rows, share_CK[number], seed, "rows", time, number)
        found.append(Client(number, own))
    return found


def sent(state: Tensors) -> list[Tensors]:
    """The model that each client has."""
    own: list[Tensors] = list(unstacked(below("sent", state)))
    return own or [state] * CLIENTS


def measure(bench: Bench, seed: int, *, name: str, **options: Any) -> float:
    """Mean accuracy of the clients' models at the end."""
    train, test = digits(seed)
    start = trained(net(seed), train, seed, steps=60)
    own = method(name, Task(start, loss), steps=8, **options)
    setting = Setting(rounds=HALF, share=0.5, seed=seed)
    done = None
    for time in range(2):
        share_CK = shares(CLIENTS, CLUSTERS, 0.3, seed, "shares", time)
        clients = world(train, share_CK, seed, time)
        done = simulate(own, clients, setting, after=done)
    assert done is not None
    found = []
    for number, model in enumerate(sent(done.state)):
        rows = mixed(test, share_CK[number], seed, "test", number)
        found.append(accuracy(model, rows))
    return mean(found)


RATES = {"lr": (0.1, 0.2, 0.4)}
CLAIM = Claim(
    "Blends of cluster models serve clients of drifting mixtures better than one model.",
    "accuracy on digits turned in each client's shares", lower_is_better=False,
    sides={"method": Side(measure, {"name": "client_driven"}, {**RATES, "refine": (0.5, 1.0)}),
           "baseline": Side(measure, {"name": "fed_avg"}, {**RATES, "server_lr": (0.7, 1.0)})})
