"""FedIns: rows are answered one by one as by hand, a pool of one is averaged scale and shift, styles choose slots."""

import math

import pytest
import torch
from torch import nn

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import Client, Table
from mixwell.parallel.federated.fed_ins import Backbone, Config, FedIns, chosen, example
from mixwell.parallel.federated.learning import descended
from mixwell.parallel.federated.simulation import Setting, simulate


@pytest.fixture(scope="module")
def given():
    """The example in float64."""
    values = example(generator(6))
    backbone = Backbone(values["task"].network.double(), ("0", "2"), 3)
    clients = [Client(c.number, Table(c.rows.x.double(), c.rows.y)) for c in values["clients"]]
    method = FedIns(backbone, Config(pool=4, top_k=2, key_share=0.3))
    return method, clients, method.start(clients, generator(1))


def times(matrix, vector):
    return [sum(w * v for w, v in zip(row, vector)) for row in matrix]


def by_hand(method, state, x, y):
    """(logits, loss) of one row in plain floats."""
    first, second = (method.backbone.network[place].weight.tolist() for place in (0, 2))
    hidden = [max(0.0, h) for h in times(first, x)]
    query = times(second, hidden)
    length = math.sqrt(sum(q * q for q in query))
    cosines = [sum(q * k for q, k in zip(query, key)) / length / math.sqrt(sum(k * k for k in key))
               for key in state["keys"].tolist()]
    slots = sorted(range(4), key=lambda slot: -cosines[slot])[:2]

    def mean(name):
        return ((state[name][slots[0]] + state[name][slots[1]]) / 2).tolist()

    hidden = [max(0.0, h * g + b) for h, g, b in zip(times(first, x), mean("scale.0"), mean("shift.0"))]
    features = [f * g + b for f, g, b in zip(times(second, hidden), mean("scale.1"), mean("shift.1"))]
    logits = [v + b for v, b in zip(times(mean("head.weight"), features), mean("head.bias"))]
    missed = math.log(sum(math.exp(v) for v in logits)) - logits[y]
    return logits, 0.7 * missed + 0.3 * (1 - cosines[slots[0]] - cosines[slots[1]])


def test_rows_are_answered_one_by_one(given):
    method, clients, state = given
    rows = clients[4].rows
    found, _ = method.logits(state, rows.x)
    single = [by_hand(method, state, x, y) for x, y in zip(rows.x.tolist(), rows.y.tolist())]
    for own, (logits, _) in zip(found.tolist(), single):
        assert own == pytest.approx(logits, rel=1e-10, abs=1e-12)
    assert float(method.loss(state, rows)) == pytest.approx(sum(loss for _, loss in single) / len(single))
    assert len({tuple(row) for row in chosen(method.backbone.features(rows.x), state["keys"], 2)[0].tolist()}) > 1


def test_the_gradient_reaches_chosen_slots_alone(given):
    method, clients, state = given
    row = clients[0].rows.of(torch.tensor([0]))
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    method.loss(leaves, row).backward()
    slots = chosen(method.backbone.features(row.x), state["keys"], 2)[0][0].tolist()
    for name, leaf in leaves.items():
        hit = leaf.grad.flatten(1).abs().sum(1) > 0
        assert hit.nonzero().flatten().tolist() == sorted(slots), name
    small = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    assert torch.autograd.gradcheck(lambda *parts: method.loss(dict(zip(small, parts)), row), tuple(small.values()))


def test_a_pool_of_one_is_averaged_scale_and_shift(given):
    method, clients, _ = given
    one = FedIns(method.backbone, Config(pool=1, top_k=1, key_share=0.0, lr=0.1, steps=2, batch_size=100))
    start = one.start(clients, generator(0, "start"))

    def loss(tensors, rows):  # every row alike, without a choice
        network = method.backbone.network
        hidden = (network[0](rows.x) * tensors["scale.0"][0] + tensors["shift.0"][0]).relu()
        features = network[2](hidden) * tensors["scale.1"][0] + tensors["shift.1"][0]
        logits = features @ tensors["head.weight"][0].T + tensors["head.bias"][0]
        return nn.functional.cross_entropy(logits, rows.y)

    free = {name: tensor for name, tensor in start.items() if name != "keys"}
    ends = [descended(loss, free, [client.rows] * 2, 0.1) for client in clients]
    found = simulate(one, clients, Setting(rounds=1)).state
    whole = sum(len(client.rows) for client in clients)
    for name in free:
        mean = sum(len(client.rows) * end[name] for client, end in zip(clients, ends)) / whole
        torch.testing.assert_close(found[name], mean)
    assert torch.equal(found["keys"], start["keys"])  # without a share of the loss nothing draws keys


def test_the_network_is_not_sent_and_stays_as_it_is(given):
    method, clients, state = given
    before = [parameter.clone() for parameter in method.backbone.network.buffers()]
    found = simulate(method, clients, Setting(rounds=1))
    numbers = 4 * 5 + 4 * 3 * 5 + 4 * 3 + 2 * 4 * (6 + 5)
    assert sum(tensor.numel() for tensor in state.values()) == numbers
    assert found.up_bytes == found.down_bytes == 5 * 8 * numbers
    assert all(torch.equal(a, b) for a, b in zip(before, method.backbone.network.buffers()))
    assert not method.backbone.network[0]._forward_hooks


def test_sequences_are_scaled_channel_by_channel():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Identity()

        def forward(self, x_NTD):
            return self.inside(x_NTD).mean(1)

    backbone = Backbone(Mean(), ("inside",), 2)
    x = torch.arange(12.0).view(2, 3, 2)
    scale, shift = torch.tensor([[1.0, 2], [0, 1]]), torch.tensor([[0.0, 1], [5, 0]])
    found = backbone.changed(x, {"0": scale}, {"0": shift})
    assert torch.equal(found, (x * scale[:, None] + shift[:, None]).mean(1)) and backbone.widths(x) == [2]


def test_refusals(given):
    method, _, _ = given
    with pytest.raises(MixwellError, match="the network has no module 'third'; it has 0, 1, 2"):
        Backbone(method.backbone.network, ("third",), 3)
    for options, message in (({"top_k": 26}, "top_k is 26 of a pool of 25"), ({"pool": 0}, "pool is 0"),
                             ({"top_k": 0}, "top_k is 0"), ({"key_share": 1.0}, "key_share is 1.0"),
                             ({"lr": 0.0}, "lr is 0.0")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
