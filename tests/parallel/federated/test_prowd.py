"""ProWD: codes and their bytes, training through few bits, what is chosen; 32 bits for all is federated averaging."""

import dataclasses

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import size_bytes
from mixwell.parallel.federated.codes import best_scale, expanded, nearest, packed
from mixwell.parallel.federated.fed_avg import Config as Plain
from mixwell.parallel.federated.fed_avg import FedAvg
from mixwell.parallel.federated.learning import gradient
from mixwell.parallel.federated.prowd import Config, Dequantiser, ProWD, agreeing, rescaled, size_of, through
from mixwell.parallel.federated.simulation import Setting, simulate


@pytest.fixture
def matrix(generator):
    return torch.randn(7, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("bits, size", [(2, 9), (4, 18), (8, 35)])
def test_codes_come_back_as_they_went_and_take_their_bits(matrix, bits, size):
    tensors = {"w": matrix, "b": matrix[0]}
    sent = packed(tensors, bits)
    assert size_bytes(sent) == size + 8 + 5 * 8 and sent["w.code"].dtype == torch.uint8
    back = expanded(sent, bits, tensors)
    torch.testing.assert_close(back["w"], nearest(matrix, bits))
    assert torch.equal(back["b"], matrix[0])
    steps = (back["w"] / best_scale(matrix, bits)).round()
    assert steps.abs().max() <= 2 ** (bits - 1) - 1
    again = expanded(packed(back, bits), bits, tensors)
    torch.testing.assert_close(again["w"], back["w"], rtol=1e-6 if bits < 8 else 5e-3, atol=1e-6 if bits < 8 else 5e-3)


def test_the_scale_has_the_least_error_of_those_tried(matrix):
    for bits in (2, 4):
        most = 2 ** (bits - 1) - 1
        errors = {}
        for place in range(1, 41):
            scale = float(matrix.abs().max()) * place / 40 / most
            codes = [max(-most, min(most, round(v / scale))) for v in matrix.flatten().tolist()]
            errors[scale] = sum((c * scale - v) ** 2 for c, v in zip(codes, matrix.flatten().tolist()))
        assert float(best_scale(matrix, bits)) == pytest.approx(min(errors, key=errors.get), rel=1e-9)


def test_training_sees_few_bits_and_moves_what_is_behind_them(world):
    task, clients = world
    found = gradient(through(task.loss, 2), task.start, clients[0].rows)
    rounded = {"weight": nearest(task.start["weight"], 2), "bias": task.start["bias"]}
    straight = gradient(task.loss, rounded, clients[0].rows)
    for name, grad in straight.items():
        torch.testing.assert_close(found[name], grad)
    assert through(task.loss, 32) is task.loss


def test_32_bits_for_all_is_federated_averaging(world):
    task, clients = world
    options = {"lr": 0.2, "steps": 3, "batch_size": 5, "server_lr": 0.5}
    full = simulate(ProWD(task, Config(bits=(32,), **options)), clients, Setting(rounds=3))
    plain = simulate(FedAvg(task, Plain(**options)), clients, Setting(rounds=3))
    for name, tensor in plain.state.items():
        torch.testing.assert_close(full.state[name], tensor)
    assert full.up_bytes == plain.up_bytes


def test_a_round_is_lifted_chosen_and_averaged_as_by_hand(world):
    task, clients = world
    config = Config(bits=(2, 32), lift="scale", agreement=0.8, lr=0.2, steps=1, batch_size=100)
    method = ProWD(task, config)
    found = simulate(method, clients, Setting(rounds=1))
    models, sizes = [], [len(client.rows) for client in clients]
    for number, client in enumerate(clients):
        start = dict(task.start)
        if number % 2 == 0:
            start["weight"] = nearest(start["weight"], 2)
        seen = {**start, "weight": nearest(start["weight"], 2)} if number % 2 == 0 else start
        grads = gradient(task.loss, seen, client.rows)
        after = {name: start[name] - 0.2 * grads[name] for name in start}
        if number % 2 == 0:
            after["weight"] = nearest(after["weight"], 2)
        models.append(after)
    h = {name: (sizes[1] * models[1][name] + sizes[3] * models[3][name]) / (sizes[1] + sizes[3]) for name in task.start}
    rms = h["weight"].square().mean().sqrt()
    kept = 0
    for number in (0, 2, 4):
        own = models[number]["weight"]
        own = own * (rms / own.square().mean().sqrt())
        for i in range(3):
            for j in range(4):
                close = abs(float(own[i, j] - h["weight"][i, j])) <= 0.8 * float(rms)
                if not (close and float(own[i, j]) * float(h["weight"][i, j]) > 0):
                    own[i, j] = h["weight"][i, j]
                else:
                    kept += 1
        models[number]["weight"] = own
    assert 0 < kept < 36
    for name in task.start:
        mean = sum(size * model[name] for size, model in zip(sizes, models)) / sum(sizes)
        torch.testing.assert_close(found.state[name], mean)


def test_agreement_and_scale():
    h = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    lifted = torch.tensor([[1.2, 1.0], [0.5, 3.0]])
    assert agreeing(lifted, h, 1.0).tolist() == [[pytest.approx(1.2), -1.0], [0.5, 1.0]]
    assert torch.equal(agreeing(lifted, h, 0.0), lifted)
    assert float(size_of(rescaled(lifted, h))) == pytest.approx(1.0)


def test_lifted_weights_are_nearer_than_codes_where_weights_have_a_pattern():
    """Blocks whose weights hang together: the network finds from the codes what is likely between them."""
    draws = generator(2)
    pattern = torch.tensor([1.0, 0.5, -0.5, -1.0]).repeat(4)
    matrix = torch.randn(64, 1, generator=draws) * pattern + 0.05 * torch.randn(64, 16, generator=draws)
    made = Dequantiser(Config(block=16, hidden=32, server_steps=120), generator(3), torch.float32)
    codes = nearest(matrix, 2)
    before = made(codes, 2, size_of(matrix))
    torch.testing.assert_close(before, codes)  # phi starts as no change
    made.fit([matrix])
    error = (made(codes, 2, size_of(matrix)) - matrix).square().mean()
    assert error < 0.5 * (codes - matrix).square().mean()
    steps = made.lifted(made.blocks(codes, size_of(matrix)), 2, made.parts)
    assert len(steps) == 3 and len(made.lifted(steps[0], 8, made.parts)) == 1


@pytest.mark.parametrize("lift", ["network", "scale", "none"])
def test_ways_to_lift_differ_and_where_nobody_has_32_bits_the_old_model_stands_in(world, lift):
    task, clients = world
    config = Config(bits=(2, 4, 8), lift=lift, lr=0.2, steps=2, block=4, hidden=8, server_steps=10, server_rate=0.05)
    own = simulate(ProWD(task, config), clients, Setting(rounds=2)).state["weight"]
    other = simulate(ProWD(task, dataclasses.replace(config, lift="none", agreement=0.0)), clients, Setting(rounds=2))
    assert own.isfinite().all() and not torch.equal(own, other.state["weight"])


def test_refusals():
    for options, message in (({"bits": (3,)}, r"bits is \(3,\); expected some of 2, 4, 8 and 32"),
                             ({"bits": ()}, "bits is"),
                             ({"agreement": -1.0}, "agreement is -1.0"), ({"block": 0}, "block is 0"),
                             ({"hidden": 0}, "hidden is 0"), ({"server_rate": 0.0}, "server_rate is 0.0"),
                             ({"server_steps": -1}, "server_steps is -1"), ({"lr": 0.0}, "lr is 0.0")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
