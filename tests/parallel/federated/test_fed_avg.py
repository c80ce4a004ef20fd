"""Federated averaging against a plain loop; robust rules in the mean's place; one client is plain descent."""

import dataclasses

import pytest
import torch

from mixwell.parallel.federated.aggregation import Aggregation
from mixwell.parallel.federated.fed_avg import Config, FedAvg
from mixwell.parallel.federated.learning import descended, gradient
from mixwell.parallel.federated.simulation import Setting, simulate
from tests.parallel.federated._hand import added, averaged, numbers, plain
from tests.parallel.federated._hand import gradient as by_hand

WHOLE = Config(lr=0.2, steps=3, batch_size=100)  # every step on all rows


def run(world, config=WHOLE, **setting):
    task, clients = world
    return simulate(FedAvg(task, config), clients, Setting(**{"rounds": 4, **setting}))


def test_rounds_are_those_of_a_plain_loop(world):
    task, clients = world
    model = plain(task.start)
    for _ in range(4):
        ends = []
        for client in clients:
            own = model
            for _ in range(3):
                own = added(own, by_hand(own, client.rows.x.tolist(), client.rows.y.tolist()), -0.2)
            ends.append(own)
        mean = averaged(ends, [len(client.rows) for client in clients])
        model = added(model, added(mean, model, -1), 0.5)
    found = run(world, dataclasses.replace(WHOLE, server_lr=0.5))
    assert numbers(plain(found.state)) == pytest.approx(numbers(model), rel=1e-10)


def test_one_client_is_plain_descent_and_bytes_are_the_models(world):
    task, clients = world
    found = simulate(FedAvg(task, WHOLE), clients[:1], Setting(rounds=2))
    plain_end = descended(task.loss, task.start, [clients[0].rows] * 6, 0.2)
    for name, tensor in plain_end.items():
        torch.testing.assert_close(found.state[name], tensor)
    assert found.down_bytes == found.up_bytes == 2 * 15 * 8


def test_batches_are_drawn_anew_by_round_and_client(world):
    config = Config(lr=0.2, steps=2, batch_size=4)
    first, again, other = run(world, config), run(world, config), run(world, config, seed=1)
    assert torch.equal(first.state["weight"], again.state["weight"])
    assert not torch.equal(first.state["weight"], other.state["weight"])


def test_a_robust_rule_stands_where_the_mean_is_led_astray(world):
    task, clients = world

    def loss(config):
        state = run(world, config, rounds=15, liars=1, attack="opposite", factor=10.0).state
        return sum(float(task.loss(state, client.rows)) for client in clients)

    start = sum(float(task.loss(task.start, client.rows)) for client in clients)
    assert loss(WHOLE) > start
    for rule in ("trimmed_mean", "median", "krum", "geometric_median"):
        robust = dataclasses.replace(WHOLE, aggregation=Aggregation(rule=rule, faulty=1))
        assert loss(robust) < 0.5 * start


def test_a_tensor_that_the_loss_does_not_read_has_no_gradient(world):
    task, clients = world
    grads = gradient(task.loss, {**task.start, "idle": torch.ones(2)}, clients[0].rows)
    assert grads["idle"].tolist() == [0, 0] and grads["weight"].abs().max() > 0


def test_refusals():
    for options, message in (({"lr": 0.0}, "lr is 0.0; expected a number above 0"), ({"steps": 0}, "steps is 0"),
                             ({"batch_size": 0}, "batch_size is 0"), ({"server_lr": -1.0}, "server_lr is -1.0")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
