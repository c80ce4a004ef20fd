"""HiFT against an optimiser for each group, full training where there is one group, and what a turn leaves alone."""

import pytest
import torch

from mixwell.adapters.in_turn import Config, InTurn, grouped
from mixwell.adapters.turns import Turns
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.lm.training.loop import train
from mixwell.lm.training.optimizer import decays
from mixwell.lm.training.sampler import Sampler
from mixwell.parallel.team import Alone
from tests.contracts._adapters import TOKENS, model
from tests.contracts._tools import fresh
from tests.lm.tiny import DENSE, tiny_config, tiny_data, tiny_model

STEPS = {"tokens": None, "steps": 6, "dtype": "fp32", "grad_clip": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tokens") / "tokens")


def dense():
    return tiny_model(layers=(DENSE, DENSE))


def test_training_agrees_with_an_optimiser_for_each_group(data, tmp_path):
    """Four groups, six steps: the rate of a cycle's middle, and moments that count a group's own visits."""
    network, expected = dense(), dense().train()
    there = InTurn.attach(network, None, Config(), fresh())
    config = tiny_config(**STEPS, warmup=0.0, decay=0.5)
    train(network, data, config, tmp_path)
    named = dict(expected.named_parameters())
    own = [[p for n, p in named.items() if n.startswith(start)] for start in
           ("embed.", "layers.0.", "layers.1.", ("norm.", "head."))]
    assert sum(map(len, own)) == len(named)
    optimisers = []
    for group in own:
        pulled = [p for n, p in named.items() if any(p is q for q in group) and decays(n, p)]
        free = [p for p in group if not any(p is q for q in pulled)]
        optimisers.append(torch.optim.AdamW([{"params": pulled, "weight_decay": 0.1},
                                             {"params": free, "weight_decay": 0.0}], betas=(0.9, 0.95)))
    sampler = Sampler(data, None, 4, 8, config.seed)
    rates = [2 / 6] * 4 + [5 / 6] * 2  # the middles of the first four steps and of the two that are left
    for step, middle in enumerate(rates):
        batch = sampler.batch()
        expected.zero_grad()
        loss = expected.loss(batch.tokens_BT, batch.targets_BT, labels_B=batch.domains_B)
        loss.nats.backward()
        for group in optimisers[step % 4].param_groups:
            group["lr"] = config.learning_rate(middle)
        optimisers[step % 4].step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, named[name], rtol=1e-5, atol=1e-6)
    assert there.num_parameters == sum(p.numel() for p in named.values())
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_group_is_full_training_bit_for_bit(data, tmp_path, checkpointing):
    found = []
    for name, layers in (("full", 0), ("turns", 4)):
        network = dense()
        if layers:
            InTurn.attach(network, None, Config(layers=layers), fresh())
        train(network, data, tiny_config(steps=3, tokens=None, checkpointing=checkpointing), tmp_path / name)
        found.append(network.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_training_that_is_gone_on_with_takes_up_its_turn(data, tmp_path):
    class Killed(Exception):
        pass

    def stopped(step, share, info):
        if step == 3:
            raise Killed

    found = []
    for name, killed in (("whole", False), ("again", True)):
        for again in ((True, False) if killed else (False,)):
            network = dense()
            InTurn.attach(network, None, Config(order="random"), fresh(4))
            try:
                train(network, data, tiny_config(**STEPS), tmp_path / name, progress=stopped if again else None)
            except Killed:
                assert all(p.requires_grad for p in network.parameters())
        found.append(network.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_there_for_the_group_alone(checkpointing):
    network = model(sparse=True).train()
    network.checkpointing = checkpointing
    InTurn.attach(network, None, Config(order="down"), fresh())
    turns = network.turns
    turns.open()
    assert turns.length == 4
    for step, start in enumerate([("norm.", "head."), "layers.1.", "layers.0.", "embed."]):
        network.zero_grad()
        turns.begin(step + 4)
        network.loss(TOKENS[:, :-1], TOKENS[:, 1:]).nats.backward()
        live = {name for name, p in network.named_parameters() if p.grad is not None}
        assert live == {name for name, _ in network.named_parameters() if name.startswith(start)}
    turns.close()
    assert all(p.requires_grad for p in network.parameters())


def test_several_processes_are_refused(data, tmp_path):
    class Two(Alone):
        size = 2

    network = dense()
    InTurn.attach(network, None, Config(), fresh())
    with pytest.raises(MixwellError, match="trained in turn, which one process can do; 2 came"):
        train(network, data, tiny_config(**STEPS), tmp_path, team=Two())


def test_groups_go_from_the_embeddings_up():
    names = ["head.weight", "layers.1.a", "layers.10.a", "layers.2.a", "embed.weight", "layers.0.a", "norm.weight"]
    assert grouped(names, 1) == [("embed.weight",), ("layers.0.a",), ("layers.1.a",), ("layers.2.a",),
                                 ("layers.10.a",), ("head.weight", "norm.weight")]
    assert grouped(names, 4)[1] == ("layers.10.a", "head.weight", "norm.weight")
    orders = {InTurn.turns(names, Config(order="random"), generator(seed)) for seed in range(8)}
    assert len(orders) > 1 and {frozenset(order) for order in orders} == {frozenset(grouped(names, 1))}


def test_what_is_frozen_beside_has_no_turn():
    parts = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    turns = Turns([parts[:1], parts[1:2], parts[2:]])
    parts[1].requires_grad_(False)
    turns.open()
    for step in range(4):
        turns.begin(step)
        assert [p.requires_grad for p in parts] == [step % 2 == 0, False, step % 2 == 1]
    turns.close()
    assert [p.requires_grad for p in parts] == [True, False, True] and not turns.length


def test_refuses_no_layers():
    with pytest.raises(ValueError, match="layers is 0; expected at least 1"):
        Config(layers=0)
