"""CDFL: clients of drifting mixtures get better models of their own than one that is shared, for as many bytes.

Paper: Towards Client Driven Federated Learning.
Tried: twelve clients, digits turned by 0, 90 and 180 degrees in shares of each client's own, drawn from Dirichlet(0.3)
and drawn anew after half of 40 rounds; half of the clients come in a round; a net trained on some upright digits is
where all start. Accuracy of what each client was sent last on held-out digits turned in its shares. Against it: an
accuracy that is no higher than that of federated averaging. Beside: shares told by distance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.parallel.federated._digits import accuracy, digits, loss, mean, method, net, trained, turned
from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import Client, Table, Tensors, clients_of
from mixwell.parallel.federated.learning import Task, below, unstacked
from mixwell.parallel.federated.simulation import Setting, simulate

CLIENTS, CLUSTERS, HALF = 12, 3, 20


def shares(seed: int, time: int) -> Tensor:
    """Each client's shares [C, 3] of the turns."""
    draws = generator(seed, "shares", time)
    alpha = torch.full((CLIENTS, CLUSTERS), 0.3, dtype=torch.float64)
    drawn = torch._standard_gamma(alpha, generator=draws).clamp_min(1e-6)
    total = drawn.sum(1, keepdim=True)
    return drawn / total


def mixed(rows: Table, share: Tensor, *keys: int | str) -> Table:
    """Rows turned in shares [3]."""
    draws = generator(*keys)
    quarters = torch.multinomial(share, len(rows), replacement=True, generator=draws)
    return turned(rows, quarters)


def world(train: Table, share_CK: Tensor, seed: int, time: int) -> list[Client]:
    """Clients with a hundred rows each, turned in their shares."""
    places = torch.arange(len(train)).chunk(CLIENTS)
    found = []
    for client in clients_of(train, places):
        own = mixed(client.rows, share_CK[client.number], seed, "rows", time, client.number)
        found.append(Client(client.number, own))
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
    first = world(train, shares(seed, 0), seed, 0)
    before = simulate(own, first, setting)
    share_CK = shares(seed, 1)
    second = world(train, share_CK, seed, 1)
    state = simulate(own, second, setting, after=before).state
    found = []
    for number, model in enumerate(sent(state)):
        rows = mixed(test, share_CK[number], seed, "test", number)
        found.append(accuracy(model, rows))
    return mean(found)


GRID = {"lr": (0.1, 0.2, 0.4), "refine": (0.5, 1.0), "temperature": (0.1, 0.3)}
SEARCH = {"lr": (0.05, 0.1, 0.2, 0.4), "server_lr": (0.5, 1.0, 1.5)}
CLAIM = Claim(
    "Blends of cluster models serve clients of drifting mixtures better than one model.",
    "accuracy on digits turned in each client's shares", lower_is_better=False,
    sides={"method": Side(measure, {"name": "client_driven"}, GRID),
           "baseline": Side(measure, {"name": "fed_avg"}, SEARCH),
           "by distance": Side(measure, {"name": "client_driven", "estimate": "distance"}, GRID)})
