"""Curricula: which rows and clients come when, and that all rows from the start is federated averaging to the bit."""

import dataclasses
import math

import pytest
import torch

from mixwell.parallel.federated.aggregation import Aggregation
from mixwell.parallel.federated.clients import Client, Table
from mixwell.parallel.federated.curriculum import Config, Curriculum, share_at
from mixwell.parallel.federated.fed_avg import Config as Plain
from mixwell.parallel.federated.fed_avg import FedAvg
from mixwell.parallel.federated.learning import Task, row_losses
from mixwell.parallel.federated.simulation import Setting, Turn, simulate


class Seen(Table):
    """Rows that tell which of them were asked for."""

    asked: list

    def of(self, places):
        found = Seen(self.x[places], self.y[places])
        object.__setattr__(found, "asked", self.asked)
        return found


def watched(count=10):
    """Clients whose row i has the loss i, and a task that notes the rows of each step."""
    seen = []

    def loss(tensors, rows):
        seen.append(rows.x.tolist())
        return (tensors["x"] * rows.x).mean()

    task = Task({"x": torch.ones((), dtype=torch.float64)}, loss, lambda tensors, rows: rows.x * tensors["x"])
    x = torch.arange(float(count), dtype=torch.float64)
    return task, [Client(0, Table(x.flip(0), x))], seen


@pytest.mark.parametrize("pace, middle", [
    ("linear", 0.5), ("quadratic", 0.25), ("root", math.sqrt(0.5)), ("log", 1 + math.log(0.5 + math.exp(-10)) / 10),
    ("exp", math.expm1(5) / math.expm1(10)), ("step", 0.0)])
def test_paces(pace, middle):
    config = Config(pace=pace, first=0.2, until=0.8)
    found = [share_at(Turn(number, 20, 0), config) for number in range(20)]
    assert found[8] == pytest.approx(0.2 + 0.8 * middle)
    assert found[0] == pytest.approx(0.2, abs=1e-5) and found[16:] == pytest.approx([1.0] * 4, abs=1e-5)
    assert found == sorted(found) and max(found) <= 1


@pytest.mark.parametrize("order, first", [("easy", {0, 1}), ("hard", {8, 9})])
def test_batches_come_from_the_first_rows_alone(order, first):
    task, clients, seen = watched()
    config = Config(order=order, first=0.2, until=1.0, lr=1e-9, steps=6, batch_size=1)
    simulate(Curriculum(task, config), clients, Setting(rounds=5))
    rounds = [{row for part in seen[6 * r: 6 * r + 6] for row in part} for r in range(5)]
    assert rounds[0] == first
    for number, drawn in enumerate(rounds):  # 2, 4 (3.6), 6 (5.2), 7 (6.8), 9 (8.4) of ten
        count = math.ceil(10 * (0.2 + 0.8 * number / 5) - 1e-9)
        assert drawn <= (set(range(count)) if order == "easy" else set(range(10 - count, 10)))
    assert {row for drawn in rounds for row in drawn} > first


def test_random_order_keeps_its_rows_and_is_not_by_loss():
    task, clients, seen = watched(40)
    config = Config(order="random", first=0.1, until=1.0, lr=1e-9, steps=30, batch_size=1)
    simulate(Curriculum(task, config), clients, Setting(rounds=2))
    first = {row for part in seen[:30] for row in part}
    assert len(first) == 4 and first not in ({0, 1, 2, 3}, {36, 37, 38, 39})
    assert first < {row for part in seen for row in part}


@pytest.mark.parametrize("clients_too", [False, True])
def test_all_rows_from_the_start_are_federated_averaging_to_the_bit(world, clients_too):
    task, clients = world
    options = {"lr": 0.2, "steps": 3, "batch_size": 5, "aggregation": Aggregation(rule="median")}
    full = Curriculum(task, Config(first=1.0, rank_clients=clients_too, **options))
    found = simulate(full, clients, Setting(rounds=3)).state
    plain = simulate(FedAvg(task, Plain(**options)), clients, Setting(rounds=3)).state
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert ("told" in found) == clients_too


def test_clients_come_by_the_losses_that_they_told(world):
    task, _ = world
    draws = torch.Generator().manual_seed(2)
    clients = []
    for number in range(6):  # the higher the number, the more labels are wrong
        x = 3 * torch.nn.functional.one_hot(torch.arange(30) % 3, 4).double()
        x = x + 0.1 * torch.randn(30, 4, generator=draws, dtype=torch.float64)
        wrong = (torch.arange(30) % 6 < number).long()
        clients.append(Client(number, Table(x, (torch.arange(30) + wrong) % 3)))
    config = Config(rank_clients=True, first=0.5, until=1.0, lr=0.5, steps=5)
    found = simulate(Curriculum(task, config), clients, Setting(rounds=12))
    asked = [one.asked for one in found.ledger]
    assert [len(one) for one in asked] == [math.ceil(6 * (0.5 + 0.5 * t / 12) - 1e-9) for t in range(12)]
    assert asked[0] == (0, 1, 2) and asked[1][-3:] == (3, 4, 5)  # who told nothing yet comes first
    assert asked[5] == tuple(range(len(asked[5])))  # then the easiest
    hard = simulate(Curriculum(task, dataclasses.replace(config, order="hard")), clients, Setting(rounds=6)).ledger
    assert len(hard[2].asked) == 4 and 5 in hard[2].asked and 0 not in hard[2].asked


def test_losses_row_by_row_where_the_task_has_none_at_once(world):
    task, clients = world
    alone = Task(task.start, task.loss)
    rows = clients[0].rows
    torch.testing.assert_close(row_losses(alone, task.start, rows), row_losses(task, task.start, rows))


def test_refusals():
    for options, message in (({"first": 0.0}, "first is 0.0"), ({"until": 0.0}, "until is 0.0"),
                             ({"first": 1.2}, "first=1.2, until=0.8; expected at most 1"),
                             ({"steps": 0}, "steps is 0")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
