"""Compressed experts against a loop; what auxiliary experts say and what they lose."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.compressed_experts import CompressedExperts, Config, split_slots
from mixwell.experts.layers.moe import Config as PlainConfig
from mixwell.experts.layers.moe import MoE
from tests.experts.layers._loops import enlarged, same_forward_and_gradient, silu, tokens

VECTORS = ("into_gate", "into_up", "hidden_scale")


def drawn(generator, **options):
    """A layer in float64 whose vectors are no ones."""
    config = Config(**{"num_experts": 6, "hidden_dim": 9, **options})
    layer = enlarged(CompressedExperts(5, config, generator))
    with torch.no_grad():
        for name in VECTORS:
            vectors = getattr(layer, name)
            vectors.copy_(1 + torch.randn(vectors.shape, generator=generator, dtype=torch.float64) / 2)
    return layer


def expert(layer, e, x, v, u, s):
    gate, up = layer.gate_up_proj[e].chunk(2)
    return layer.down_proj[e] @ (silu(gate @ (v * x)) * (up @ (u * x)) * s)


def loop(layer, x, k, renormalise):
    rows = []
    for token in x:
        p = torch.softmax(layer.router.weight @ token, 0)
        order = sorted(range(len(p)), key=lambda e: -p[e].item())[:k]
        if renormalise:
            p = p / sum(p[e] for e in order)
        main, rest = order[:layer.config.main], order[layer.config.main:]
        mass = sum(p[e] for e in rest)
        v, u, s = (sum(p[e] / mass * getattr(layer, name)[e] for e in rest) for name in VECTORS)
        rows.append(sum(p[e] * expert(layer, e, token, v, u, s) for e in main))
    return torch.stack(rows)


@pytest.mark.parametrize("k, main, renormalise", [(2, 1, True), (4, 2, True), (4, 1, False), (6, 3, False)])
def test_agrees_with_a_loop_forward_and_gradient(generator, k, main, renormalise):
    router = {"method": "top_k", "k": k, "renormalise": renormalise}
    layer = drawn(generator, main=main, router=router, balance={"switch": 0.1})
    x = tokens(generator, dim=5)
    found = layer(x, Context())
    assert found.losses.keys() == {"switch"}
    assert found.routing.indices_TK.shape[1] == main
    leaves = [x, *layer.parameters()]
    same_forward_and_gradient(found.y_TD, loop(layer, x, k, renormalise), leaves, generator)


def test_only_auxiliary_experts_vectors_speak_and_only_main_experts_run(generator):
    layer = drawn(generator, main=2, router={"k": 3})
    x = tokens(generator, count=1, dim=5)
    order = torch.softmax(layer.router.weight @ x[0], 0).argsort(descending=True).tolist()
    leaves = [layer.into_gate, layer.into_up, layer.hidden_scale]
    spoke = torch.autograd.grad(layer(x, Context()).y_TD.sum(), [*leaves, layer.down_proj])
    for gradient in spoke[:3]:
        assert [e for e in range(6) if gradient[e].abs().max() > 0] == [order[2]]
    assert sorted(e for e in range(6) if spoke[3][e].abs().max() > 0) == sorted(order[:2])


def test_ones_are_the_mixture_of_main_experts_with_their_weights_as_they_were(generator):
    """The lost mass is not given to those that run."""
    raw = {"method": "top_k", "k": 3, "renormalise": False}
    layer = CompressedExperts(5, Config(num_experts=6, hidden_dim=9, main=2, router=raw), generator)
    plain = MoE(5, PlainConfig(num_experts=6, hidden_dim=9, router=raw | {"k": 2}), generator)
    plain.load_state_dict({n: p for n, p in layer.state_dict().items() if n not in VECTORS})
    x = torch.randn(9, 5, generator=generator)
    torch.testing.assert_close(layer(x, Context()).y_TD, plain(x, Context()).y_TD)


def test_without_auxiliary_experts_vectors_are_ones(generator):
    layer = drawn(generator, main=3, router={"k": 2})
    plain = MoE(5, PlainConfig(num_experts=6, hidden_dim=9, router={"k": 2}), generator).double()
    plain.load_state_dict({n: p for n, p in layer.state_dict().items() if n not in VECTORS})
    x = tokens(generator, dim=5)
    torch.testing.assert_close(layer(x, Context()).y_TD, plain(x, Context()).y_TD)


def test_slots_are_split_by_weight_and_not_by_place(generator):
    layer = drawn(generator, main=1, router={"k": 3})
    routing = layer.router(tokens(generator, dim=5), Context())
    turned = type(routing)(routing.indices_TK.flip(1), routing.weights_TK.flip(1), routing.scores_TE)
    main, rest = split_slots(turned, 1)
    assert torch.equal(main.indices_TK[:, 0], routing.scores_TE.argmax(1))
    torch.testing.assert_close(main.dense_TE() + rest.dense_TE(), routing.dense_TE())


def test_counts_its_flops(generator):
    layer = CompressedExperts(6, Config(num_experts=5, hidden_dim=7, main=2, router={"k": 3}), generator)
    assert layer.flops_per_token() == 6 * 2 * 6 * 7 + 2 * 6 * 5 + 2 * 1 * (2 * 6 + 7)


@pytest.mark.parametrize("name", ["num_experts", "hidden_dim", "main"])
def test_refuses_what_is_below_one(name):
    with pytest.raises(ValueError, match=f"{name} is 0; expected at least 1"):
        Config(**{"num_experts": 2, "hidden_dim": 3, name: 0})
