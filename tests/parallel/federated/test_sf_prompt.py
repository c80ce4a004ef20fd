"""SFPrompt: the split model and its gradient are the whole model's, bytes are what travels, hard rows stay."""

import dataclasses

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.parallel.federated.clients import Client, Table
from mixwell.parallel.federated.sf_prompt import Config, Parts, SFPrompt, el2n, example, split_gradient
from mixwell.parallel.federated.simulation import Setting, simulate

WHOLE = Config(prompts=2, local_steps=2, steps=3, keep=1.0, lr=0.1, batch_size=100)


@pytest.fixture(scope="module")
def given():
    values = example(generator(3))
    start = {name: tensor.double() for name, tensor in values["task"].start.items()}
    parts = dataclasses.replace(values["task"], start=start)
    clients = [Client(c.number, Table(c.rows.x.double(), c.rows.y)) for c in values["clients"]]
    return parts, clients


def whole_loss(parts, tensors, rows, body=True):
    """The loss of the model in one piece, written out."""
    seen = parts.head(rows.x)
    prompts = torch.stack([tensors["prompt"]] * len(rows))
    h = torch.cat([prompts, seen], 1)
    h = parts.body(h) if body else h
    logits = h.mean(1) @ tensors["tail.weight"].T + tensors["tail.bias"]
    picked = logits.exp()[torch.arange(len(rows)), rows.y] / logits.exp().sum(1)
    return -picked.log().mean()


def grad(loss, tensors):
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(leaves), leaves.values())))


def test_the_split_gradient_is_the_whole_models(given):
    parts, clients = given
    state = SFPrompt(parts, WHOLE).start(clients, generator(0))
    rows = clients[2].rows
    found, way = split_gradient(parts, state, rows)
    expected = grad(lambda leaves: whole_loss(parts, leaves, rows), state)
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, rtol=1e-9, atol=1e-12)
    assert way == 2 * len(rows) * (2 + 4) * 6 * 8  # two tensors of B (P + T) D each way
    torch.testing.assert_close(parts.logits(state, rows.x).log_softmax(1)[torch.arange(len(rows)), rows.y].mean(),
                               -whole_loss(parts, state, rows))


def test_a_round_is_local_steps_then_split_steps_then_averaging(given):
    parts, clients = given
    method = SFPrompt(parts, WHOLE)
    start = method.start(clients, generator(0, "start"))
    ends = []
    for client in clients:
        own = start
        for body in (False, False, True, True, True):
            step = grad(lambda leaves, body=body, client=client: whole_loss(parts, leaves, client.rows, body), own)
            own = {name: own[name] - 0.1 * step[name] for name in own}
        ends.append(own)
    found = simulate(method, clients, Setting(rounds=1))
    whole = sum(len(client.rows) for client in clients)
    for name in start:
        mean = sum(len(client.rows) * end[name] for client, end in zip(clients, ends)) / whole
        torch.testing.assert_close(found.state[name], mean)
    model = (2 * 6 + 3 * 6 + 3) * 8
    way = 3 * 2 * whole * 6 * 6 * 8
    assert found.down_bytes == found.up_bytes == 5 * model + way


def test_scores_are_distances_from_the_label():
    logits = torch.tensor([[0.0, 0.0], [4.0, -4.0], [4.0, -4.0]], dtype=torch.float64)
    found = el2n(logits, torch.tensor([0, 0, 1]))
    p = torch.tensor(8.0, dtype=torch.float64).sigmoid().item()
    assert found.tolist() == pytest.approx([0.5 * 2**0.5, (1 - p) * 2**0.5, p * 2**0.5])


def test_the_rows_of_largest_score_stay_and_fewer_rows_cost_fewer_bytes(given):
    parts, clients = given
    method = SFPrompt(parts, dataclasses.replace(WHOLE, keep=0.5))
    state = method.start(clients, generator(0))
    rows = clients[4].rows
    kept = method.pruned(state, rows)
    score = el2n(method.local(state, rows.x), rows.y)
    assert len(kept) == 8 and sorted(el2n(method.local(state, kept.x), kept.y).tolist()) == pytest.approx(
        sorted(score.tolist())[8:])
    half = simulate(method, clients, Setting(rounds=1))
    all_rows = simulate(SFPrompt(parts, WHOLE), clients, Setting(rounds=1))
    assert half.up_bytes < 0.6 * all_rows.up_bytes


def test_without_local_steps_and_with_longer_prompts(given):
    parts, clients = given
    longer = SFPrompt(parts, dataclasses.replace(WHOLE, prompts=5, local_steps=0))
    found = simulate(longer, clients, Setting(rounds=1))
    assert found.state["prompt"].shape == (5, 6)
    state = longer.start(clients, generator(0, "start"))
    assert longer.parts.entered(state["prompt"], clients[0].rows.x).shape == (8, 5 + 4, 6)
    assert not torch.equal(found.state["prompt"], state["prompt"])


def test_no_gradient_is_asked_of_head_or_body(given):
    parts, clients = given
    frozen = torch.ones((), dtype=torch.float64, requires_grad=True)
    guarded = Parts(lambda x: parts.head(x) * frozen, parts.body, parts.tail, parts.start)
    simulate(SFPrompt(guarded, WHOLE), clients[:1], Setting(rounds=1))
    assert frozen.grad is None


def test_refusals():
    for options, message in (({"prompts": 0}, "prompts is 0"), ({"local_steps": -1}, "local_steps is -1"),
                             ({"keep": 0.0}, "keep is 0.0"), ({"keep": 1.5}, "keep is 1.5; expected at most 1"),
                             ({"lr": 0.0}, "lr is 0.0")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
