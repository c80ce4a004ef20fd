"""CDFL against a plain loop of visits; planted clusters are told apart; one model comes down, whatever K."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.parallel.federated.client_driven import ClientDriven, Config, told_by_distance, told_by_update
from mixwell.parallel.federated.clients import Client, Table
from mixwell.parallel.federated.learning import Task, below, unstacked
from mixwell.parallel.federated.simulation import Setting, simulate
from tests.parallel.federated._hand import added, gradient, numbers, plain

CONFIG = Config(clusters=2, temperature=0.3, smooth=0.4, refine=0.8, least=0.2, aging=0.7, spread=0.3, lr=0.2, steps=2,
                batch_size=100)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def softmax(values):
    parts = [math.exp(value - max(values)) for value in values]
    return [part / sum(parts) for part in parts]


def blend(models, shares):
    found = added(models[0], models[0], -1)
    for model, share in zip(models, shares):
        found = added(found, model, share)
    return found


@pytest.mark.parametrize("estimate", ["update", "distance"])
def test_visits_are_those_of_a_plain_loop(world, estimate):
    task, clients = world
    config = Config(**{**vars(CONFIG), "estimate": estimate})
    found = simulate(ClientDriven(task, config), clients, Setting(rounds=5, share=0.6))
    start = ClientDriven(task, config).start(clients, generator(0, "start"))
    centres = [plain(one) for one in unstacked(below("centre", start))]
    assert math.dist(numbers(centres[0]), numbers(centres[1])) > 0.3
    shares, came = [[0.5, 0.5] for _ in range(5)], [-1] * 5
    sent = [blend(centres, [0.5, 0.5])] * 5
    for turn, traffic in enumerate(found.ledger):
        for i in traffic.answered:
            w, v = sent[i], sent[i]
            for _ in range(2):
                w = added(w, gradient(w, clients[i].rows.x.tolist(), clients[i].rows.y.tolist()), -0.2)
            if estimate == "update":
                scores = [cosine(numbers(added(w, v, -1)), numbers(added(c, v, -1))) / 0.3 for c in centres]
            else:
                squares = [math.dist(numbers(w), numbers(c)) ** 2 for c in centres]
                scores = [-square / (0.3 * sum(squares) / 2) for square in squares]
            fresh = softmax(scores)
            shares[i] = [0.4 * old + 0.6 * new for old, new in zip(shares[i], fresh)]
            slow = (turn - came[i]) ** -0.7
            centres = [added(c, added(w, c, -1), 0.8 * slow * u) if u >= 0.2 else c for c, u in zip(centres, shares[i])]
            sent[i], came[i] = blend(centres, shares[i]), turn
    assert found.state["shares"].flatten().tolist() == pytest.approx([u for row in shares for u in row], rel=1e-8)
    assert found.state["came"].tolist() == came
    for k in range(2):
        own = {name: found.state[f"centre.{name}"][k] for name in ("weight", "bias")}
        assert numbers(plain(own)) == pytest.approx(numbers(centres[k]), rel=1e-8)
    assert max(u for row in shares for u in row) > 0.6


def planted(estimate):
    """Six clients, each pulled to one of two places; u of each after some rounds."""
    draws = torch.Generator().manual_seed(1)
    places = torch.tensor([[4.0, 0, 1], [-4.0, 1, 0]], dtype=torch.float64)
    rows = [places[number % 2] + 0.3 * torch.randn(20, 3, generator=draws, dtype=torch.float64) for number in range(6)]
    clients = [Client(number, Table(x, x)) for number, x in enumerate(rows)]
    start = {"x": torch.zeros(3, dtype=torch.float64)}
    task = Task(start, lambda tensors, part: 0.5 * (tensors["x"] - part.x).square().sum(1).mean())
    config = Config(clusters=2, estimate=estimate, lr=0.2, steps=5, batch_size=20, spread=0.1)
    return simulate(ClientDriven(task, config), clients, Setting(rounds=25, share=0.5)), places


def test_planted_clusters_are_told_apart_and_one_model_comes_down():
    found, places = planted("update")
    share = found.state["shares"][:, 0]
    assert (share[::2] - share[1::2]).abs().min() > 0.9
    near = torch.cdist(found.state["centre.x"], places)
    assert near.min(0).values.max() < 0.5
    assert found.down_bytes == found.up_bytes == 25 * 3 * 3 * 8


def test_the_update_says_more_than_the_place():
    """A client that was sent the middle and went a little towards a centre."""
    centres = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64)
    middle, went = torch.zeros(2, dtype=torch.float64), torch.tensor([0.01, 0.0], dtype=torch.float64)
    assert told_by_update(went, middle, centres, 0.2)[0] > 0.99
    assert 0.5 < told_by_distance(went, middle, centres, 0.2)[0] < 0.6


def test_one_cluster_is_a_running_mean(world):
    task, clients = world
    config = Config(clusters=1, refine=1.0, aging=0.0, spread=0.0, lr=0.2, steps=2, batch_size=100)
    found = simulate(ClientDriven(task, config), clients[:1], Setting(rounds=2))
    model = plain(task.start)
    for _ in range(4):
        model = added(model, gradient(model, clients[0].rows.x.tolist(), clients[0].rows.y.tolist()), -0.2)
    own = {name: found.state[f"centre.{name}"][0] for name in ("weight", "bias")}
    assert numbers(plain(own)) == pytest.approx(numbers(model), rel=1e-9)


def test_there_is_no_single_model(world):
    method = ClientDriven(world[0], CONFIG)
    with pytest.raises(MixwellError, match="ClientDriven leaves no single model; read its state"):
        method.model(method.start(world[1], generator(0)))


def test_refusals():
    for options, message in (({"clusters": 0}, "clusters is 0"), ({"temperature": 0.0}, "temperature is 0.0"),
                             ({"smooth": 1.0}, "smooth is 1.0"), ({"refine": 1.5}, "refine is 1.5; expected at most 1"),
                             ({"aging": -1.0}, "aging is -1.0"), ({"least": 1.0}, "least is 1.0"),
                             ({"spread": -1.0}, "spread is -1.0"), ({"lr": 0.0}, "lr is 0.0"),
                             ({"steps": 0}, "steps is 0"), ({"batch_size": 0}, "batch_size is 0")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
