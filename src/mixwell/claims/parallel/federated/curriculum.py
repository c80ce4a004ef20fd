"""Curricula: clients that learn from their easiest rows first end with a better shared net.

Paper: When Do Curricula Work in Federated Learning?
Tried: twenty clients with the digits dealt out by Dirichlet(0.05), a fifth of the labels wrong, half of the clients
asked in each of 20 rounds, as many steps for all; accuracy on held-out digits with right labels, mean of the last five
rounds. Beside: rows in an order drawn once at the same pace, which tells order from number. Against it: an accuracy
that is no higher than that of averaging over all rows, or than that of the order drawn.
"""

from __future__ import annotations

from typing import Any

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.parallel.federated._digits import RATES, accuracy, dealt, digits, mean, method, task
from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import Client, Table, Tensors
from mixwell.parallel.federated.simulation import Setting, Turn, simulate

ROUNDS, LAST, WRONG = 20, 5, 0.2


def mislabelled(client: Client, seed: int) -> Client:
    """The client with a fifth of its labels drawn anew."""
    number, rows = client.number, client.rows
    draws = generator(seed, "wrong", number)
    count = len(rows)
    drawn = torch.randint(10, (count,), generator=draws)
    coin = torch.rand(count, generator=draws)
    wrong = coin < WRONG
    labels = torch.where(wrong, drawn, rows.y)
    table = Table(rows.x, labels)
    return Client(number, table)


def measure(bench: Bench, seed: int, *, order: str, **options: Any) -> float:
    """Mean accuracy after each of the last rounds."""
    train, test = digits(seed)
    right = dealt(train, 20, 0.05, seed)
    clients = [mislabelled(client, seed) for client in right]
    own = method("curriculum", task(seed), order=order, steps=8, **options)
    found: list[float] = []

    def watch(turn: Turn, state: Tensors) -> None:
        if turn.number >= ROUNDS - LAST:
            share = accuracy(state, test)
            found.append(share)

    setting = Setting(rounds=ROUNDS, share=0.5, seed=seed)
    simulate(own, clients, setting, watch)
    return mean(found)


GRID = {"lr": RATES}
CLAIM = Claim(
    "Clients that learn easy rows first end with a better net.", "accuracy on held-out digits", lower_is_better=False,
    provided=(Comparison(baseline="drawn order", lower_is_better=False),),
    sides={"method": Side(measure, {"order": "easy", "first": 0.3}, GRID),
           "baseline": Side(measure, {"order": "easy", "first": 1.0}, GRID),
           "drawn order": Side(measure, {"order": "random", "first": 0.3}, GRID)})
