"""LEGEND: depths by a device's pace and ranks that rise reach an accuracy in less time than equal adapters everywhere.

Paper: Adaptive Parameter-Efficient Federated Fine-Tuning on Heterogeneous Devices.
Tried: a net of six residual layers trained on upright digits, then tuned by adapters on digits turned by 90 degrees,
dealt out to eight clients by Dirichlet(0.5) whose devices differ sixfold; simulated seconds until nine tenths of
held-out digits of the accuracy asked for are right, the whole time where they never are. Beside: depths with equal
ranks. Against it: less than a fifth of the time of rank 4 in all layers saved, at rates tuned alike. Untestable where
that baseline never gets there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, Untestable
from mixwell.claims.parallel.federated._digits import dealt, digits, right, turned
from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import Table, Tensors, batches
from mixwell.parallel.federated.learning import Task, descended
from mixwell.parallel.federated.legend import Config, Device, Legend, rising_ranks
from mixwell.parallel.federated.simulation import Setting, Turn, simulate

LAYERS, WIDTH, BUDGET, ROUNDS = 6, 32, 24, 25
ASKED = 0.75  # of held-out digits right


def fresh(seed: int) -> dict[str, Tensor]:
    """A residual net."""
    draws = generator(seed, "net")

    def drawn(*shape: int) -> Tensor:
        return shape[-1] ** -0.5 * torch.randn(shape, generator=draws)

    found = {"embed": drawn(WIDTH, 64), "head": drawn(10, WIDTH)}
    for layer in range(LAYERS):
        found[f"layers.{layer}.weight"] = drawn(WIDTH, WIDTH)
    return found


def answer(base: Tensors, adapters: Tensors, x: Tensor) -> Tensor:
    """Logits of the net with what adapters there are."""
    h = x @ base["embed"].T
    for layer in range(LAYERS):
        weight = base[f"layers.{layer}.weight"]
        if adapters:
            change = adapters[f"layers.{layer}.B"] @ adapters[f"layers.{layer}.A"]
            weight = weight + change
        h = h + F.linear(h, weight).tanh() / LAYERS
    return F.linear(h, base["head"])


def started(ranks: list[int], seed: int) -> dict[str, Tensor]:
    """Adapters that change nothing yet."""
    draws = generator(seed, "adapters")
    found = {}
    for layer, rank in enumerate(ranks):
        drawn = torch.randn(rank, WIDTH, generator=draws)
        found[f"layers.{layer}.A"] = WIDTH**-0.5 * drawn
        found[f"layers.{layer}.B"] = torch.zeros(WIDTH, rank)
    return found


def pretrained(rows: Table, seed: int) -> Tensors:
    """The net after steps on upright digits."""
    parts = batches(rows, 64, 200, generator(seed, "before"))
    return descended(lambda base, part: F.cross_entropy(answer(base, {}, part.x), part.y), fresh(seed), parts, 0.2)


def measure(bench: Bench, seed: int, *, rise: float, **options: Any) -> float:
    """Simulated seconds until so many are right."""
    train, test = digits(seed)
    base = pretrained(train, seed)
    train, test = (turned(rows, torch.ones_like(rows.y)) for rows in (train, test))
    clients = dealt(train, 8, 0.5, seed)
    devices = [Device(0.01 * (1 + 5 * number / 7), 2e5) for number in range(8)]
    ranks = rising_ranks(LAYERS, BUDGET, rise)

    def loss(adapters: Tensors, rows: Table) -> Tensor:
        return F.cross_entropy(answer(base, adapters, rows.x), rows.y)

    own = Legend(Task(started(ranks, seed), loss), Config(steps=8, **options), devices)
    reached: list[int] = []

    def watch(turn: Turn, state: Tensors) -> None:
        if right(answer(base, state, test.x), test.y) >= ASKED:
            reached.append(turn.number)

    ledger = simulate(own, clients, Setting(rounds=ROUNDS, seed=seed), watch).ledger
    if not reached and options.get("even"):
        raise Untestable("equal adapters in all layers never get so many digits right")
    rounds = 1 + min(reached, default=ROUNDS - 1)
    return sum(one.seconds for one in ledger[:rounds])


RATES = {"lr": (0.3, 0.6, 1.0)}
CLAIM = Claim(
    "Depths by pace and rising ranks save a fifth of the time to an accuracy.", "simulated seconds", at_least=0.2,
    relative=True,
    sides={"method": Side(measure, {"rise": 1.0}, RATES),
           "baseline": Side(measure, {"rise": 0.0, "even": True}, RATES),
           "equal ranks": Side(measure, {"rise": 0.0}, RATES)})
