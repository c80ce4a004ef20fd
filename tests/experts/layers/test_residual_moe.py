"""The residual mixture against a loop, and the pyramid."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.layers.moe import Config as PlainConfig
from mixwell.experts.layers.moe import MoE
from mixwell.experts.layers.residual_moe import Config, ResidualMoE, pyramid
from tests.experts.layers._loops import enlarged, mixture, same_forward_and_gradient, swiglu, tokens


@pytest.mark.parametrize("k, shared", [(1, None), (2, 7)])
def test_agrees_with_a_loop_forward_and_gradient(generator, k, shared):
    config = Config(num_experts=4, hidden_dim=5, shared_hidden_dim=shared, router={"k": k}, balance={"switch": 0.1})
    layer = enlarged(ResidualMoE(6, config, generator))
    x = tokens(generator)
    routed = mixture(x, layer.router(x, Context()).dense_TE(),
                     lambda e, z: swiglu(z, layer.gate_up_proj[e], layer.down_proj[e]))
    expected = []
    for t in range(len(x)):
        a, b = (layer.coefficients.weight @ x[t] + layer.coefficients.bias).exp()
        fixed = swiglu(x[t], layer.shared_gate_up_proj, layer.shared_down_proj)
        expected.append((a * routed[t] + b * fixed) / (a + b))
    same_forward_and_gradient(layer(x, Context()).y_TD, torch.stack(expected), [x, *layer.parameters()], generator)


def test_even_shares_are_half_of_the_mixture_with_a_shared_expert(generator):
    """The paper's plain sum needs no layer of its own."""
    layer = ResidualMoE(6, Config(num_experts=4, hidden_dim=5), generator)
    plain = MoE(6, PlainConfig(num_experts=4, hidden_dim=5, shared_experts=1, router={"k": 1}), generator)
    plain.load_state_dict({n: p for n, p in layer.state_dict().items() if not n.startswith("coefficients")})
    with torch.no_grad():
        layer.coefficients.weight.zero_()
    x = torch.randn(9, 6, generator=generator)
    torch.testing.assert_close(2 * layer(x, Context()).y_TD, plain(x, Context()).y_TD)


def test_without_experts_the_fixed_block_is_left(generator):
    layer = ResidualMoE(6, Config(num_experts=4, hidden_dim=5), generator).double()
    with torch.no_grad():
        layer.down_proj.zero_()
        layer.coefficients.weight.zero_()
        layer.coefficients.bias.copy_(torch.tensor([-50.0, 50.0]))
    x = tokens(generator)
    expected = torch.stack([swiglu(z, layer.shared_gate_up_proj, layer.shared_down_proj) for z in x])
    torch.testing.assert_close(layer(x, Context()).y_TD, expected)


def test_counts_its_flops(generator):
    layer = ResidualMoE(6, Config(num_experts=4, hidden_dim=5, shared_hidden_dim=7), generator)
    assert layer.flops_per_token() == 6 * 6 * (5 + 7) + 2 * 6 * 4 + 2 * 6 * 2


def test_pyramid_gives_deeper_layers_more_experts_and_leaves_the_rest():
    mixer = {"method": "experts.layers.residual_moe", "num_experts": 2, "hidden_dim": 5}
    dense = {"method": "experts.layers.swiglu", "hidden_dim": 5}
    arch = {"num_layers": 3, "channel_mixer": [dense, mixer, mixer]}
    grown_arch = pyramid(arch, [0, 4, 8])
    assert [s.get("num_experts") for s in grown_arch["channel_mixer"]] == [None, 4, 8]
    assert arch["channel_mixer"][2]["num_experts"] == 2
    same = pyramid({"num_layers": 2, "channel_mixer": mixer}, [0, 2])
    assert same["channel_mixer"] == mixer


@pytest.mark.parametrize("counts, message", [([4], "1 counts for 2 layers"), ([4, 4], "layer 0 .* cannot have 4")])
def test_pyramid_refuses(counts, message):
    arch = {"num_layers": 2, "channel_mixer": [{"method": "experts.layers.swiglu", "hidden_dim": 5},
                                               {"method": "experts.layers.moe", "num_experts": 2, "hidden_dim": 5}]}
    with pytest.raises(MixwellError, match=message):
        pyramid(arch, counts)


def test_refuses_bad_sizes():
    with pytest.raises(ValueError, match="shared_hidden_dim is 0; expected at least 1"):
        Config(num_experts=2, hidden_dim=5, shared_hidden_dim=0)
