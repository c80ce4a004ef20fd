"""(IA)^3 against a loop, its biases, its stacks."""

import pytest
import torch

from mixwell.adapters.ia3 import IA3, Config
from mixwell.core.errors import MixwellError
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import model, moved
from tests.contracts._tools import fresh


@pytest.mark.parametrize("inputs", [(), ("weight",)])
def test_a_layer_agrees_with_a_loop(inputs):
    network = Linear(6, 5, True, fresh(1))
    torch.nn.init.normal_(network.bias, generator=fresh(2))
    there = moved(IA3.attach(network, "all-linear", Config(inputs=inputs), fresh()), size=0.5)
    factors = there.adapters["weight"].factors
    x = torch.randn(4, 6, generator=fresh(4), requires_grad=True)
    y = network(x)
    for n in range(4):
        for o in range(5):
            terms = sum(network.weight[o, i] * x[n, i] * (factors[i] if inputs else 1) for i in range(6))
            expected = terms + network.bias[o] if inputs else factors[o] * (terms + network.bias[o])
            torch.testing.assert_close(y[n, o], expected, rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(y.sum(), factors)
    bare = x @ network.weight.T + network.bias
    torch.testing.assert_close(grad, (x * network.weight.sum(0)).sum(0) if inputs else bare.sum(0))


def test_the_bias_is_merged_with_its_weight():
    there = moved(IA3.attach(model(), "qkv", Config(), fresh()), size=0.5)
    with torch.no_grad():
        there.model.layers[0].sequence_mixer.qkv.bias.fill_(2.0)
    factors = there.adapters["layers.0.sequence_mixer.qkv.weight"].factors.detach()
    there.merge()
    torch.testing.assert_close(there.model.layers[0].sequence_mixer.qkv.bias.detach(), 2 * factors)


def test_its_count_is_one_number_a_channel():
    there = IA3.attach(model(), None, Config(), fresh())
    assert there.num_parameters == 2 * (48 + 24)  # queries, keys and values; hidden units


def test_a_target_that_is_no_plain_matrix_is_refused():
    with pytest.raises(MixwellError, match=r"fits layers.0.channel_mixer.router.weight, which is not multiplied"):
        IA3.attach(model(sparse=True), "router", Config(), fresh())
