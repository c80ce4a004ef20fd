"""MoNNA against a plain loop; no liars and all neighbours is averaging; momentum keeps a quiet lie out."""

import dataclasses

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.parallel.federated.clients import Client, Table
from mixwell.parallel.federated.learning import Task
from mixwell.parallel.federated.monna import Config, MoNNA, nearest_neighbours
from mixwell.parallel.federated.simulation import Setting, simulate
from tests.parallel.federated._hand import added, averaged, gradient, numbers, plain

WHOLE = Config(lr=0.4, decay_every=2, momentum=0.6, weight_decay=0.01, batch_size=100, faulty=1)


def away(a, b):
    return sum((x - y) ** 2 for x, y in zip(numbers(a), numbers(b)))


def test_rounds_are_those_of_a_plain_loop(world):
    task, clients = world
    models = [plain(task.start)] * 5
    momenta = [added(model, model, -1) for model in models]
    for turn in range(5):
        lr = 0.4 / (1 + turn // 2)
        halves = []
        for i, client in enumerate(clients):
            grad = gradient(models[i], client.rows.x.tolist(), client.rows.y.tolist())
            grad = added(grad, models[i], 0.01)
            momenta[i] = added(added(momenta[i], momenta[i], -0.4), grad, 0.4)
            halves.append(added(models[i], momenta[i], -lr))
        models = [averaged(sorted(halves, key=lambda other: away(own, other))[:4], [1] * 4) for own in halves]
    found = simulate(MoNNA(task, WHOLE), clients, Setting(rounds=5))
    for i, model in enumerate(models):
        own = {name: stack[i] for name, stack in found.state.items()}
        assert numbers(plain(own)) == pytest.approx(numbers(model), rel=1e-9)
    assert found.up_bytes == found.down_bytes == 5 * 5 * 4 * 15 * 8


def test_without_liars_all_peers_hold_the_mean(world):
    task, clients = world
    state = simulate(MoNNA(task, dataclasses.replace(WHOLE, faulty=0)), clients, Setting(rounds=3)).state
    for stack in state.values():
        torch.testing.assert_close(stack, stack[:1].expand_as(stack), rtol=1e-12, atol=1e-12)


def test_a_peer_that_leaves_keeps_its_model(world):
    task, clients = world
    found = simulate(MoNNA(task, dataclasses.replace(WHOLE, faulty=0)), clients, Setting(rounds=1, leave=0.4, seed=2))
    (one,) = found.ledger
    left = set(range(5)) - set(one.answered)
    assert left and one.up_bytes == len(one.answered) * (len(one.answered) - 1) * 15 * 8
    assert all(torch.equal(found.state["weight"][own], task.start["weight"]) == (own in left) for own in range(5))


def test_momentum_keeps_peers_together_under_a_little_lie():
    """Ten peers with the same mean and noisy rows; two say the mean less one and a half deviations."""
    draws = torch.Generator().manual_seed(0)
    rows = [torch.randn(60, 20, generator=draws, dtype=torch.float64) for _ in range(10)]
    clients = [Client(number, Table(own, own)) for number, own in enumerate(rows)]
    start = {"x": torch.ones(20, dtype=torch.float64)}
    task = Task(start, lambda tensors, part: 0.5 * (tensors["x"] - part.x).square().sum(1).mean())

    def off(momentum):
        config = Config(lr=0.1, momentum=momentum, batch_size=1, faulty=2, weight_decay=0.0, decay_every=0)
        setting = Setting(rounds=60, liars=2, attack="little", factor=1.5)
        models = simulate(MoNNA(task, config), clients, setting).state["x"][:8]
        return float((models - torch.stack(rows[:8]).mean((0, 1))).norm(dim=1).mean())

    assert off(0.9) < 0.6 * off(0.0)


def test_a_lie_that_is_far_off_is_not_heard(generator):
    honest = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    models = torch.cat([honest, torch.full((1, 3), 1e9, dtype=torch.float64)])
    torch.testing.assert_close(nearest_neighbours(models, 1)[:4], honest.mean(0).expand(4, 3))


def test_refusals():
    with pytest.raises(MixwellError, match="4 answers came where 2 may be lies; expected at least 5"):
        nearest_neighbours(torch.zeros(4, 2), 2)
    for options, message in (({"lr": 0.0}, "lr is 0.0"), ({"momentum": 1.0}, "momentum is 1.0; expected 0 up to 1"),
                             ({"weight_decay": -1.0}, "weight_decay is -1.0"), ({"decay_every": -1}, "decay_every is"),
                             ({"faulty": -1}, "faulty is -1"), ({"batch_size": 0}, "batch_size is 0")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
