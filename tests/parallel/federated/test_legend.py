"""LEGEND: ranks that rise within a budget, depths by a device's pace, layers averaged by those who have them."""

import dataclasses
import itertools

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import Client, Table
from mixwell.parallel.federated.fed_avg import Config as Plain
from mixwell.parallel.federated.fed_avg import FedAvg
from mixwell.parallel.federated.learning import Task
from mixwell.parallel.federated.legend import (
    Config,
    Device,
    Legend,
    depths,
    example,
    layer_of,
    rising_ranks,
    round_seconds,
)
from mixwell.parallel.federated.simulation import Setting, Turn, simulate

CONFIG = Config(lr=0.3, steps=2, batch_size=100)


@pytest.fixture(scope="module")
def given():
    values = example(generator(2))
    start = {name: tensor.double() for name, tensor in values["task"].start.items()}
    clients = [Client(c.number, Table(c.rows.x.double(), c.rows.y)) for c in values["clients"]]
    return Task(start, values["task"].loss), clients, values["devices"]


def test_ranks_rise_and_sum_to_the_budget():
    assert rising_ranks(3, 12) == [2, 4, 6] and rising_ranks(3, 12, 0.0) == [4, 4, 4]
    assert rising_ranks(1, 5) == [5] and rising_ranks(4, 4, 2.0) == [1, 1, 1, 1]
    for layers, budget, rise in itertools.product((2, 5, 6), (7, 24, 31), (0.0, 0.7, 2.0)):
        ranks = rising_ranks(layers, budget, rise)
        assert sum(ranks) == budget and ranks == sorted(ranks) and min(ranks) >= 1 and len(ranks) == layers


def test_a_round_takes_forward_backward_and_the_way():
    """4 layers at 0.5 s forward and twice that backward for 2 of them, 3 steps; 100 bytes twice at 50 a second."""
    assert round_seconds(0.5, 50.0, 2, 4, 3, 100) == pytest.approx(3 * (2.0 + 2.0) + 4.0)


def test_depths_are_the_deepest_within_the_target():
    sizes = [100, 200, 300, 400]
    paces = [(0.1, 1e3), (0.2, 1e3), (0.4, 500.0), (1.6, 1e3)]
    for target in (0.5, 1.0, 1.5):
        times = [[round_seconds(f, w, depth, 4, 5, sum(sizes[4 - depth:])) for depth in range(1, 5)] for f, w in paces]
        allowed = target * sum(row[-1] for row in times) / 4
        best = [max([depth for depth in range(1, 5) if row[depth - 1] <= allowed], default=1) for row in times]
        assert depths(paces, sizes, 5, target) == best
    assert depths(paces, sizes, 5, 1.0) == [4, 4, 4, 1] and depths([(1.0, 1.0)] * 3, sizes, 5, 1.0) == [4, 4, 4]


def test_full_depth_for_all_is_federated_averaging(given):
    task, clients, devices = given
    even = simulate(Legend(task, dataclasses.replace(CONFIG, even=True), devices), clients, Setting(rounds=3)).state
    plain = simulate(FedAvg(task, Plain(lr=0.3, steps=2, batch_size=100)), clients, Setting(rounds=3)).state
    for name, tensor in plain.items():
        torch.testing.assert_close(even[name], tensor)


def test_layers_are_averaged_over_those_who_have_them_and_lower_ones_are_as_in_the_base(given):
    task, clients, devices = given
    method = Legend(task, CONFIG, devices)
    states = []
    found = simulate(method, clients, Setting(rounds=2), lambda turn, state: states.append(state))
    before = states[0]
    deep = [method.depth_of(before, number) for number in range(5)]
    assert deep == sorted(deep) and 1 <= deep[0] < deep[4] == 3  # later ones are faster
    ends = []
    for client, depth in zip(clients, deep):
        own = {name: tensor for name, tensor in before.items() if name != "measured" and layer_of(name) >= 3 - depth}
        for _ in range(2):
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in own.items()}
            grads = torch.autograd.grad(task.loss({**task.start, **leaves}, client.rows), leaves.values())
            own = {name: tensor - 0.3 * grad for (name, tensor), grad in zip(own.items(), grads)}
        ends.append(own)
    for name in task.start:
        having = [(len(c.rows), end[name]) for c, end in zip(clients, ends) if name in end]
        mean = sum(size * tensor for size, tensor in having) / sum(size for size, _ in having)
        torch.testing.assert_close(found.state[name], mean)
        assert 0 < len(having) <= 5
    sent = sum(tensor.numel() * 8 for end in ends for tensor in end.values())
    assert found.ledger[1].down_bytes == sent and found.ledger[1].up_bytes == sent + 5 * 16
    assert found.ledger[1].seconds < found.ledger[0].seconds  # rounds are shorter once paces are known


def test_paces_are_running_means_of_what_was_measured(given):
    task, clients, devices = given
    config = dataclasses.replace(CONFIG, jitter=0.3, keep=0.75)
    method = Legend(task, config, devices)
    states = []
    simulate(method, clients, Setting(rounds=2), lambda turn, state: states.append(state["measured"]))
    for number, device in enumerate(devices):
        z = [torch.randn(2, generator=Turn(r, 2, 0).draws("jitter", number), dtype=torch.float64) for r in range(2)]
        days = [torch.tensor([device.layer_s, device.bytes_per_s]) * (0.3 * one).exp() for one in z]
        torch.testing.assert_close(states[0][number], days[0])
        torch.testing.assert_close(states[1][number], 0.75 * days[0] + 0.25 * days[1])


def test_memory_bounds_the_depth_and_a_tight_target_leaves_one_layer(given):
    task, clients, devices = given
    small = [dataclasses.replace(device, most_layers=2) for device in devices]
    found = simulate(Legend(task, CONFIG, small), clients, Setting(rounds=1))
    names = Legend(task, CONFIG, small).message(found.state, clients[4], Turn(0, 1, 0))
    assert {layer_of(name) for name in names} == {1, 2}
    tight = Legend(task, dataclasses.replace(CONFIG, target=1e-3), devices)
    assert [tight.depth_of(found.state, number) for number in range(5)] == [1] * 5


def test_refusals(given):
    task, clients, devices = given
    with pytest.raises(MixwellError, match="4 devices came for 5 clients"):
        simulate(Legend(task, CONFIG, devices[:4]), clients, Setting(rounds=1))
    with pytest.raises(MixwellError, match="w names no layer; expected 'layers"):
        Legend(Task({"w": torch.zeros(1)}, task.loss), CONFIG, devices)
    with pytest.raises(MixwellError, match="a budget of 2 came for 3 layers"):
        rising_ranks(3, 2)
    with pytest.raises(MixwellError, match="a device has layer_s=0"):
        Device(0.0, 1.0)
    for options, message in (({"target": 0.0}, "target is 0.0"), ({"keep": 1.0}, "keep is 1.0"),
                             ({"jitter": -1.0}, "jitter is -1.0"), ({"lr": 0.0}, "lr is 0.0")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
