"""LEGEND: depths by a device's pace and ranks that rise learn in two thirds of the time what equal adapters learn.

Paper: Adaptive Parameter-Efficient Federated Fine-Tuning on Heterogeneous Devices.
Tried: a net of four residual layers trained on upright digits, then tuned by adapters on digits turned by 90 degrees,
dealt out by Dirichlet(0.5) to six clients whose devices differ sixfold; accuracy on held-out turned digits after 60
simulated seconds, and of rank 4 in all layers after 90. Beside: equal adapters after 60 seconds. Against it: an
accuracy more than a point below that of equal adapters, rates tuned alike.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.parallel.federated._digits import dealt, digits, drawn, quarter, right
from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import Client, Table, Tensors, batches
from mixwell.parallel.federated.learning import Task, descended
from mixwell.parallel.federated.legend import Config, Device, Legend, rising_ranks
from mixwell.parallel.federated.simulation import Outcome, Setting, simulate

LAYERS, WIDTH, BUDGET, CLIENTS = 4, 32, 16, 6
SLOWEST = 6  # times as slow as the fastest


def fresh(seed: int) -> dict[str, Tensor]:
    """A residual net."""
    draws = generator(seed, "net")
    found = {"embed": drawn(draws, WIDTH, 64), "head": drawn(draws, 10, WIDTH)}
    for layer in range(LAYERS):
        found[f"layers.{layer}.weight"] = drawn(draws, WIDTH, WIDTH)
    return found


def answer(base: Tensors, adapters: Tensors, x: Tensor) -> Tensor:
    """Logits of the net with what adapters there are."""
    h = F.linear(x, base["embed"])
    for layer in range(LAYERS):
        place = f"layers.{layer}"
        weight = base[f"{place}.weight"]
        if adapters:
            A, B = adapters[f"{place}.A"], adapters[f"{place}.B"]
            weight = weight + B @ A
        change = F.linear(h, weight).tanh()
        h = h + change / LAYERS
    return F.linear(h, base["head"])


def started(ranks: list[int], seed: int) -> dict[str, Tensor]:
    """Adapters that change nothing yet."""
    draws = generator(seed, "adapters")
    found = {}
    for layer, rank in enumerate(ranks):
        place = f"layers.{layer}"
        found[f"{place}.A"] = drawn(draws, rank, WIDTH)
        found[f"{place}.B"] = torch.zeros(WIDTH, rank)
    return found


@cache
def pretrained(seed: int) -> Tensors:
    """The net after steps on upright digits."""
    rows, _ = digits(seed)

    def loss(base: Tensors, part: Table) -> Tensor:
        said = answer(base, {}, part.x)
        return F.cross_entropy(said, part.y)

    draws = generator(seed, "before")
    parts = batches(rows, 64, 150, draws)
    return descended(loss, fresh(seed), parts, 0.2)


def within(own: Legend, clients: list[Client], seconds: float, seed: int) -> Tensors:
    """The state after the last round that ends in time."""
    setting = Setting(rounds=1, seed=seed)
    found: Outcome | None = None
    while True:
        after = simulate(own, clients, setting, after=found)
        if after.seconds > seconds:
            return found.state if found else after.state
        found = after


def measure(bench: Bench, seed: int, *, rise: float, seconds: float, **options: Any) -> float:
    """Accuracy on turned digits after so many simulated seconds."""
    train, test = digits(seed)
    base = pretrained(seed)

    def loss(adapters: Tensors, rows: Table) -> Tensor:
        said = answer(base, adapters, rows.x)
        return F.cross_entropy(said, rows.y)

    ranks = rising_ranks(LAYERS, BUDGET, rise)
    task = Task(started(ranks, seed), loss)
    slower = torch.linspace(1, SLOWEST, CLIENTS)
    devices = [Device(0.01 * times, 2e5) for times in slower.tolist()]
    config = Config(steps=6, **options)
    own = Legend(task, config, devices)
    clients = dealt(quarter(train), CLIENTS, 0.5, seed)
    state = within(own, clients, seconds, seed)
    turned = quarter(test)
    said = answer(base, state, turned.x)
    return right(said, turned.y)


RATES = {"lr": (0.3, 0.6, 1.2)}
EQUAL = {"rise": 0.0, "even": True}
CLAIM = Claim(
    "Depths by pace and rising ranks learn as much in two thirds of the time.", "accuracy on turned digits",
    lower_is_better=False, at_least=-0.01,
    sides={"method": Side(measure, {"rise": 1.0, "seconds": 60}, RATES),
           "baseline": Side(measure, {**EQUAL, "seconds": 90}, RATES),
           "equal adapters, 60 s": Side(measure, {**EQUAL, "seconds": 60}, RATES)})
