"""What every method of clients that learn together promises (family `parallel.federated`)."""

import dataclasses

import pytest
import torch

from mixwell.parallel.federated.aggregation import Aggregation
from mixwell.parallel.federated.clients import Client
from mixwell.parallel.federated.simulation import Federated, Setting, simulate
from tests.contracts._tools import cases, fresh, poisoned_memory, same_config

METHODS = cases("parallel.federated")
RULED = [case for case in METHODS if "rules" in case.values[0].tags]
ROUNDS = 3


def built(entry, **changes):
    """The method of the example, its clients, and the example itself."""
    values = dict(entry.module().example(fresh()))
    values["config"] = dataclasses.replace(values["config"], **changes)
    clients = values.pop("clients")
    return entry.load()(**values), clients, values


def run(entry, clients=None, changes=None, **setting):
    method, own, _ = built(entry, **(changes or {}))
    return simulate(method, own if clients is None else clients, Setting(**{"rounds": ROUNDS, **setting}))


@pytest.fixture(scope="module", params=METHODS)
def entry(request):
    return request.param


@pytest.fixture(scope="module")
def plain(entry):
    return run(entry)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_seed_gives_the_same_bits_another_one_others(entry, plain):
    with poisoned_memory():
        again = run(entry)
    assert same(again.state, plain.state) and again.ledger == plain.ledger
    assert again.memories.keys() == plain.memories.keys()
    assert all(same(again.memories[own], memory) for own, memory in plain.memories.items())
    assert all(tensor.isfinite().all() for tensor in plain.state.values())
    other = run(entry, seed=1)
    assert other.state.keys() == plain.state.keys() and not same(other.state, plain.state)


def test_rows_and_states_stay_as_they_were(entry):
    method, clients, values = built(entry)
    assert isinstance(method, Federated) and same_config(values["config"])
    before = [(client.rows.x.clone(), client.rows.y.clone()) for client in clients]
    kept, copies = [], []

    def watch(turn, state):
        kept.append(state)
        copies.append({name: tensor.clone() for name, tensor in state.items()})

    simulate(method, clients, Setting(rounds=ROUNDS), watch)
    for client, (x, y) in zip(clients, before):
        assert torch.equal(client.rows.x, x) and torch.equal(client.rows.y, y)
    assert all(same(state, copy) for state, copy in zip(kept, copies)) and not same(kept[0], kept[-1])
    assert all(state.keys() == kept[0].keys() for state in kept)


def test_states_hold_no_gradient_and_bytes_go_both_ways(plain):
    assert not any(tensor.requires_grad for tensor in plain.state.values())
    assert not any(tensor.requires_grad for memory in plain.memories.values() for tensor in memory.values())
    assert plain.down_bytes > 0 and plain.up_bytes > 0
    assert len(plain.ledger) == ROUNDS and {own for one in plain.ledger for own in one.answered} == set(range(5))


def test_clients_may_be_absent_and_leave(entry):
    found = run(entry, rounds=6, share=0.6, leave=0.3, seed=3)
    assert all(tensor.isfinite().all() for tensor in found.state.values())
    assert min(len(one.answered) for one in found.ledger) < 4
    assert sum(len(one.asked) for one in found.ledger) < 30


def test_clients_that_lie_are_heard_unless_a_rule_keeps_them_out(entry, plain):
    lied = run(entry, liars=1, attack="noise", factor=3.0)
    assert not same(lied.state, plain.state)
    assert {name: tensor.shape for name, tensor in lied.state.items()} == {
        name: tensor.shape for name, tensor in plain.state.items()}


@pytest.mark.parametrize("entry", RULED)
def test_rules_keep_far_lies_out(entry):
    """With the median, a lie hardly moves what is learnt; with the mean, a hundredfold one does."""
    moves = {}
    for rule in ("mean", "median"):
        changes = {"aggregation": Aggregation(rule=rule)}
        honest = run(entry, changes=changes).state
        lied = run(entry, changes=changes, liars=1, attack="noise", factor=1000.0).state
        names = [name for name in honest if not name.startswith(("v.", "loss"))]  # what is kept of each by itself
        moves[rule] = max(float((honest[name] - lied[name]).abs().max()) for name in names)
    assert moves["median"] < 0.05 * moves["mean"]


def test_one_client_alone_is_enough(entry):
    _, clients, values = built(entry)
    lies = {"faulty": 0} if hasattr(values["config"], "faulty") else {}
    found = run(entry, clients=[Client(0, clients[3].rows)], changes=lies)
    assert all(tensor.isfinite().all() for tensor in found.state.values())
