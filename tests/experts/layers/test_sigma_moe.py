"""The sigma mixture against a loop, its first values, its dropout and its regulariser."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.layers.sigma_moe import Config, SigmaMoE
from tests.experts.layers._loops import enlarged, mixture, same_forward_and_gradient, tokens

ROUTER = {"method": "expert_dropout", "scores": "sigmoid", "renormalise": False, "over": "token", "rate": 0.3}


@pytest.mark.parametrize("k, activation", [(1, "relu"), (3, "gelu"), (4, "relu")])
def test_agrees_with_a_loop_forward_and_gradient(generator, k, activation):
    config = Config(num_experts=4, hidden_dim=5, router={**ROUTER, "k": k}, activation=activation)
    layer = enlarged(SigmaMoE(6, config, generator), 3).eval()
    act = {"relu": torch.relu, "gelu": torch.nn.functional.gelu}[activation]
    x = tokens(generator)
    gates = torch.sigmoid(torch.stack([layer.router.weight @ z for z in x]))
    chosen = torch.zeros_like(gates)
    for t in range(len(x)):
        for e in sorted(range(4), key=lambda e: -float(gates[t, e].detach()))[:k]:
            chosen[t, e] = 1.0
    expected = mixture(x, gates * chosen, lambda e, z: layer.value_proj[e] @ act(layer.key_proj[e] @ z))
    same_forward_and_gradient(layer(x, Context()).y_TD, expected, [x, *layer.parameters()], generator)


def test_all_experts_with_open_gates_are_the_dense_block(generator):
    layer = SigmaMoE(6, Config(num_experts=4, hidden_dim=5, router={**ROUTER, "k": 4}), generator).double().eval()
    with torch.no_grad():
        layer.router.weight.zero_()
    x = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    wide = torch.relu(x @ layer.key_proj.flatten(0, 1).T) @ layer.value_proj.transpose(0, 1).flatten(1).T
    torch.testing.assert_close(2 * layer(x, Context()).y_TD, wide)  # the gates are one half


def test_gates_do_not_compete(generator):
    """Raising one expert's logit leaves the weight of another alone, unlike a softmax."""
    layer = SigmaMoE(6, Config(num_experts=4, hidden_dim=5, router={**ROUTER, "k": 4}), generator).eval()
    x = torch.randn(9, 6, generator=generator)
    before = layer(x, Context()).routing.dense_TE()
    with torch.no_grad():
        layer.router.weight[0] *= 3
    after = layer(x, Context()).routing.dense_TE()
    assert torch.equal(before[:, 1:], after[:, 1:]) and not torch.equal(before[:, 0], after[:, 0])


def test_starts_as_the_dense_block_of_its_depth_would(generator):
    layer = SigmaMoE(64, Config(num_experts=8, hidden_dim=32, num_layers=6), generator)
    assert float(layer.key_proj.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 6)), rel=0.03)
    assert float(layer.value_proj.detach().std()) == pytest.approx(math.sqrt(2 / (8 * 32 * 6)), rel=0.03)
    norms = layer.router.weight.norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, math.sqrt(2 / 6)))


def test_experts_drop_out_in_training_only(generator):
    layer = SigmaMoE(6, Config(num_experts=4, hidden_dim=5, router={**ROUTER, "k": 4}), generator)
    x = torch.randn(200, 6, generator=generator)
    load = layer.train()(x, Context(generator=generator)).routing.load_E()
    assert float(load.sum()) / 800 == pytest.approx(0.7, abs=0.05)
    assert layer.eval()(x, Context()).routing.load_E().tolist() == [200] * 4
    with pytest.raises(MixwellError, match="generator"):
        layer.train()(x, Context())


def test_the_regulariser_is_the_negative_entropy_of_the_mean_gate(generator):
    layer = SigmaMoE(6, Config(num_experts=4, hidden_dim=5, router={**ROUTER, "k": 2}), generator).double().eval()
    x = tokens(generator)
    p = (x @ layer.router.weight.T).softmax(1).mean(0)
    mixed = layer(x, Context())
    torch.testing.assert_close(mixed.losses["entropy"], (p * p.log()).sum())
    torch.testing.assert_close(mixed.aux, (0.001 * (p * p.log()).sum()).float())


def test_counts_its_flops_and_takes_other_routers(generator):
    layer = SigmaMoE(6, Config(num_experts=4, hidden_dim=5, router={**ROUTER, "k": 3}), generator)
    assert layer.flops_per_token() == 3 * 2 * (2 * 6 * 5) + 2 * 6 * 4
    other = SigmaMoE(6, Config(num_experts=4, hidden_dim=5, router={"method": "top_k", "k": 1}, balance={}), generator)
    assert other(torch.zeros(0, 6), Context()).y_TD.shape == (0, 6)


def test_refuses():
    with pytest.raises(ValueError, match="num_layers is 0"):
        Config(num_experts=4, hidden_dim=5, num_layers=0)
