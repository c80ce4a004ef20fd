"""MoS against a loop over shards, its count, how lists are drawn, and plain LoRA as its limit."""

import pytest
import torch

from mixwell.adapters.mos import Config, MoS, lists
from mixwell.core.errors import MixwellError
from tests.contracts._adapters import logits, model, moved
from tests.contracts._tools import fresh

CONFIG = Config(rank=3, budget=2, shards=4, private=1, alpha=6.0)


def test_a_change_and_its_gradient_agree_with_a_loop_over_shards():
    there = moved(MoS.attach(model(), "down_proj", CONFIG, fresh(1)))
    there.model.double()
    names = [f"layers.{i}.channel_mixer.down_proj" for i in range(2)]
    first, second = (there.adapters[name] for name in names)
    assert first.pool_A is second.pool_A and first.pool_A.shape == (2 * 2 * 4, 24 // 4)
    for adapter in (first, second):
        A = [torch.cat([adapter.pool_A[int(adapter.places_A[j * 4 + i])] for i in range(4)]) for j in range(3)]
        B = [torch.cat([adapter.pool_B[int(adapter.places_B[j * 4 + i])] for i in range(4)]) for j in range(3)]
        expected = sum(2.0 * torch.outer(b, a) for a, b in zip(A, B))
        weight = adapter.target.tensor
        torch.testing.assert_close(adapter.delta_weight(), expected.detach())
        x = torch.randn(5, 24, generator=fresh(2), dtype=torch.float64)
        found = adapter.after(x, x @ weight.T, weight, adapter.A, adapter.B)
        parts = [adapter.pool_A, adapter.pool_B]
        torch.testing.assert_close(found, x @ (weight + expected).T)
        for one, other in zip(torch.autograd.grad(found.square().sum(), parts),
                              torch.autograd.grad((x @ (weight + expected).T).square().sum(), parts)):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("sparse", [False, True])
def test_it_has_the_numbers_of_a_lora_of_the_budgets_rank(sparse):
    there = MoS.attach(model(sparse), None, CONFIG, fresh())
    targets = [adapter.target for adapter in there.adapters.values()]
    assert there.num_parameters == sum(2 * (t.inputs + t.outputs) * (t.stack or (1,))[0] for t in targets)


def test_public_shards_are_drawn_without_replacement_and_private_ones_are_the_layers_own():
    config = Config(rank=4, budget=2, shards=3, private=1)
    places_A, places_B = lists(5, config, fresh(1)), lists(5, config, fresh(2))
    public, own = 5 * 3, 3
    for layer in range(5):
        for places in (places_A, places_B):
            assert len(set(places[layer].tolist())) == 12 and places[layer, :9].max() < public
            first = public + layer * own
            assert places[layer, 9:].tolist() == list(range(first, first + own))
        assert places_A[layer, :9].tolist() != places_B[layer, :9].tolist()  # pairs are taken apart
    used = places_A[:, :9].unique(return_counts=True)[1]
    assert used.max() > 1  # layers share them


def test_without_sharing_it_is_lora():
    there = moved(MoS.attach(model(), None, Config(rank=2, budget=2, private=2, shards=1), fresh()))
    for adapter in there.adapters.values():
        first = int(adapter.places_A[0])
        assert torch.equal(adapter.places_A, adapter.places_B)
        assert torch.equal(adapter.A, adapter.pool_A[first : first + 2])


def test_experts_are_layers_of_their_own():
    there = moved(MoS.attach(model(sparse=True), "re:.*mixer.down_proj", CONFIG, fresh()))
    stack = there.adapters["layers.1.channel_mixer.down_proj"]
    assert stack.pool_A.shape == (2 * 8 * 4, 24 // 4) and stack.A.shape == (4, 3, 24)
    assert len({tuple(row.tolist()) for row in stack.places_A}) == 4
    apart = logits(there.model)
    there.merge()
    torch.testing.assert_close(logits(there.model), apart)


@pytest.mark.parametrize("options, message", [
    ({"private": 3}, "private, budget and rank are 3, 2 and 8"), ({"budget": 9}, "are 1, 9 and 8"),
    ({"shards": 0}, "shards is 0"), ({"alpha": 0.0}, "alpha is 0")])
def test_refuses_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


@pytest.mark.parametrize("options, message", [
    ({"shards": 5}, "shards is 5 at .*choose a divisor of both"),
    ({"rank": 5}, "2 matrices of its kind share 2 public ranks, and rank 5 draws 4"),
    ({"rank": 17, "budget": 17}, "rank is 17")])
def test_refuses_what_matrices_cannot_serve(options, message):
    with pytest.raises(MixwellError, match=message):
        MoS.attach(model(), "down_proj", Config(**{"rank": 3, "budget": 2, "shards": 4} | options))
