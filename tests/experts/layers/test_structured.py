"""Blocks of structured matrices against loops over their dense ones; penalties; steps; ranks; activations."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.layers.structured import Config, StructuredBlocks
from mixwell.experts.layers.swiglu import Config as DenseConfig
from mixwell.experts.layers.swiglu import SwiGLU
from tests.experts.layers._loops import enlarged, mixture, same_forward_and_gradient, silu, tokens

LOW = {"method": "low_rank", "rank": 2}


def block(expert):
    def run(x):
        return expert.out.dense() @ (silu(expert.gate.dense() @ x) * (expert.up.dense() @ x))

    return run


@pytest.mark.parametrize("spec", [LOW, {"method": "block_tensor_train"}, {"method": "blast", "rank": 3, "blocks": 2}])
def test_agrees_with_a_loop_over_dense_matrices(generator, spec):
    config = Config(hidden_dim=4, structure=spec, num_experts=3, router={"method": "top_k", "k": 2})
    layer = enlarged(StructuredBlocks(6, config, generator), 5)
    x = tokens(generator, 5)
    weights = layer.router(x, Context()).dense_TE()
    expected = mixture(x, weights, lambda e, z: block(layer.experts[e])(z))
    same_forward_and_gradient(layer(x, Context()).y_TD, expected, [x, *layer.parameters()], generator)


@pytest.mark.parametrize("activation, gated", [("relu", False), ("gelu", False), ("gelu_tanh", True), ("silu", True)])
def test_whole_matrices_make_the_dense_block(generator, activation, gated):
    spec = {"method": "low_rank", "rank": 0}
    layer = StructuredBlocks(6, Config(hidden_dim=4, structure=spec, activation=activation, gated=gated), generator)
    dense = SwiGLU(6, DenseConfig(hidden_dim=4, activation=activation, gated=gated), generator)
    one = layer.experts[0]
    with torch.no_grad():
        into = torch.cat([one.gate.weight, one.up.weight]) if gated else one.up.weight
        getattr(dense, "gate_up_proj" if gated else "up_proj").copy_(into)
        dense.down_proj.copy_(one.out.weight)
    x = torch.randn(9, 6, generator=generator)
    torch.testing.assert_close(layer(x, Context()).y_TD, dense(x, Context()).y_TD)
    assert layer.flops_per_token() == dense.flops_per_token()


def test_maps_start_at_the_std_asked_for(generator):
    spec = {"method": "low_rank", "rank": 0}
    for std, wanted in ((0.02, 0.02), (0.3, 0.3), (None, 64**-0.5)):
        layer = StructuredBlocks(64, Config(hidden_dim=64, structure=spec, std=std), generator)
        assert [float(m.weight.std()) for m in layer.matrices()] == pytest.approx([wanted] * 3, rel=0.1)


def test_what_matrices_add_to_the_loss_is_added_in_training_alone(generator):
    spec = {"method": "low_rank", "rank": 2, "decay": 0.5}
    config = Config(hidden_dim=4, structure=spec, num_experts=2, balance={"switch": 0.5})
    layer = StructuredBlocks(6, config, generator)
    x = torch.randn(5, 6, generator=generator)
    mixed = layer(x, Context())
    expected = 0.5 * sum(m.dense().square().sum() for m in layer.matrices())
    torch.testing.assert_close(mixed.losses["structure"], expected)
    torch.testing.assert_close(mixed.aux, expected + 0.5 * mixed.losses["switch"])
    assert "structure" not in layer.eval()(x, Context()).losses
    assert layer.train()(x, Context(losses=False)).aux is None
    assert layer.flops_per_token() == 2 / 2 * 2 * 3 * 2 * 2 * 10 + 2 * 6 * 2


def test_steps_reach_every_matrix(generator):
    spec = {"method": "maestro", "every": 1, "threshold": 1e9}
    layer = StructuredBlocks(6, Config(hidden_dim=4, structure=spec), generator)
    layer.after_step([])
    assert all(int(m.steps) == 1 and int(m.kept.sum()) == 1 for m in layer.matrices())


def test_an_expert_without_tokens_is_harmless(generator):
    config = Config(hidden_dim=4, structure=LOW, num_experts=3, router={"method": "top_k", "k": 1})
    layer = StructuredBlocks(6, config, generator)
    mixed = layer(torch.randn(1, 6, generator=generator), Context())
    assert mixed.y_TD.shape == (1, 6) and int((mixed.routing.load_E() == 0).sum()) == 2
    assert layer(torch.zeros(0, 6), Context()).y_TD.shape == (0, 6)


def test_refuses(generator):
    with pytest.raises(ValueError, match="num_experts is 0"):
        Config(hidden_dim=4, structure=LOW, num_experts=0)
    with pytest.raises(MixwellError, match=r"unknown precision\.structured method"):
        StructuredBlocks(6, Config(hidden_dim=4, structure={"method": "low_rnak"}), generator)
    with pytest.raises(MixwellError, match=r"structure precision.structured.low_rank: rank is 5"):
        StructuredBlocks(6, Config(hidden_dim=4, structure={"method": "low_rank", "rank": 5}), generator)
