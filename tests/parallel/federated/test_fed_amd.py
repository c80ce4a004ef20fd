"""FedAMD against a plain loop; all anchors know the exact gradient; an anchors' round leaves the model."""

import dataclasses

import pytest
import torch

from mixwell.parallel.federated.aggregation import Aggregation
from mixwell.parallel.federated.clients import batches
from mixwell.parallel.federated.fed_amd import Config, FedAMD
from mixwell.parallel.federated.simulation import Setting, simulate
from tests.parallel.federated._hand import added, averaged, gradient, numbers, plain

CONFIG = Config(lr=0.2, server_lr=0.7, steps=3, batch_size=5, anchor=0.4)


def run(world, config, rounds, **setting):
    turns = []
    method = FedAMD(world[0], config)
    found = simulate(method, world[1], Setting(rounds=rounds, **setting), lambda *seen: turns.append(seen))
    return method, found, turns


def rows_of(table):
    return table.x.tolist(), table.y.tolist()


def test_rounds_are_those_of_a_plain_loop(world):
    task, clients = world
    method, found, turns = run(world, CONFIG, 6, share=0.6)
    x = plain(task.start)
    v = [gradient(x, *rows_of(client.rows)) for client in clients]
    miners = 0
    for (turn, _), traffic in list(zip(turns, found.ledger))[1:]:
        g0 = averaged(v, [1] * 5)
        steps, fresh = [], {}
        for own in traffic.asked:
            client = clients[own]
            if method.anchors(client, turn):
                fresh[own] = gradient(x, *rows_of(client.rows))
                continue
            before, here, g = x, added(x, g0, -0.2), g0
            for part in batches(client.rows, 5, 2, turn.draws("batches", own)):
                g = added(added(g, gradient(here, *rows_of(part)), 1), gradient(before, *rows_of(part)), -1)
                before, here = here, added(here, g, -0.2)
            steps.append(added(here, x, -1))
        miners += len(steps)
        x = added(x, averaged(steps, [1] * len(steps)), 0.7) if steps else x
        for own, grad in fresh.items():
            v[own] = grad
    assert 0 < miners < 15
    assert numbers(plain(found.state, "x.")) == pytest.approx(numbers(x), rel=1e-9)
    for own in range(5):
        kept = {name: found.state[f"v.{name}"][own] for name in ("weight", "bias")}
        assert numbers(plain(kept)) == pytest.approx(numbers(v[own]), rel=1e-9)


def test_the_first_round_asks_everyone_and_a_miner_hears_twice_as_much(world):
    config = dataclasses.replace(CONFIG, anchor=0.0)
    _, found, _ = run(world, config, 2, share=0.4)
    first, second = found.ledger
    assert first.asked == (0, 1, 2, 3, 4) and first.down_bytes == first.up_bytes == 5 * 15 * 8
    assert len(second.asked) == 2 and second.down_bytes == 2 * second.up_bytes == 4 * 15 * 8


def test_a_period_brings_rounds_in_which_all_anchor_and_the_model_stays(world):
    task, clients = world
    _, _, turns = run(world, dataclasses.replace(CONFIG, period=2), 4)
    states = [state for _, state in turns]
    assert torch.equal(states[0]["x.weight"], task.start["weight"])
    assert not torch.equal(states[1]["x.weight"], states[0]["x.weight"])
    assert torch.equal(states[2]["x.weight"], states[1]["x.weight"])
    assert not torch.equal(states[3]["x.weight"], states[2]["x.weight"])
    exact = averaged([gradient(plain(states[2], "x."), *rows_of(c.rows)) for c in clients], [1] * 5)
    kept = {name: states[2][f"v.{name}"].mean(0) for name in ("weight", "bias")}
    assert numbers(plain(kept)) == pytest.approx(numbers(exact), rel=1e-9)  # all anchors: the exact gradient


def test_one_miner_on_all_its_rows_is_gradient_descent(world):
    task, clients = world
    config = Config(lr=0.1, steps=4, batch_size=100, anchor=0.0)
    found = simulate(FedAMD(task, config), clients[:1], Setting(rounds=2))
    x = plain(task.start)
    for _ in range(4):
        x = added(x, gradient(x, *rows_of(clients[0].rows)), -0.1)
    assert numbers(plain(found.state, "x.")) == pytest.approx(numbers(x), rel=1e-9)


def test_an_anchor_may_be_a_batch_and_a_rule_may_stand_in_the_means_place(world):
    _, small, _ = run(world, dataclasses.replace(CONFIG, anchor_size=3), 1)
    _, whole, _ = run(world, dataclasses.replace(CONFIG, anchor_size=100), 1)
    assert not torch.equal(small.state["v.weight"], whole.state["v.weight"])
    robust = dataclasses.replace(CONFIG, anchor=0.0, aggregation=Aggregation(rule="median"))
    _, found, _ = run(world, robust, 2)
    _, mean, _ = run(world, dataclasses.replace(CONFIG, anchor=0.0), 2)
    assert not torch.equal(found.state["x.weight"], mean.state["x.weight"])


def test_refusals():
    for options, message in (({"anchor": 1.0}, "anchor is 1.0; expected 0 up to 1"), ({"period": 1}, "period is 1"),
                             ({"anchor_size": 0}, "anchor_size is 0"), ({"lr": 0.0}, "lr is 0.0")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
