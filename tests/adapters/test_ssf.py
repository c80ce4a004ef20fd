"""SSF against a loop, folded into weight and bias."""

import pytest
import torch

from mixwell.adapters.ssf import SSF, Config
from mixwell.core.errors import MixwellError
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import model, moved
from tests.contracts._tools import fresh


def layer(bias=True):
    made = Linear(6, 5, bias, fresh(1)).double()
    if bias:
        torch.nn.init.normal_(made.bias, generator=fresh(2))
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shift", [True, False])
def test_a_layer_and_its_gradient_agree_with_a_loop(bias, shift):
    network = layer(bias)
    there = SSF.attach(network, "all-linear", Config(shift=shift), fresh())
    network.double()
    moved(there, size=0.5)
    adapter = there.adapters["weight"]
    assert (adapter.shift is not None) == (bias and shift)
    x = torch.randn(4, 6, generator=fresh(4), dtype=torch.float64)
    y = network(x)
    slopes = torch.zeros(5, dtype=torch.float64)
    for n in range(4):
        for o in range(5):
            bare = sum(network.weight[o, i] * x[n, i] for i in range(6)) + (network.bias[o] if bias else 0)
            added = adapter.shift[o] if bias and shift else 0
            torch.testing.assert_close(y[n, o], adapter.scale[o] * bare + added)
            slopes[o] += 2 * y[n, o].detach() * bare.detach()
    grads = torch.autograd.grad(y.square().sum(), [p for p in network.parameters() if p.requires_grad])
    torch.testing.assert_close(grads[0], slopes)
    if bias and shift:
        torch.testing.assert_close(grads[1], 2 * y.detach().sum(0))


def test_it_folds_into_weight_and_bias():
    network = layer()
    there = SSF.attach(network, "all-linear", Config(), fresh())
    network.double()
    moved(there, size=0.5)
    adapter = there.adapters["weight"]
    weight, bias = network.weight.detach().clone(), network.bias.detach().clone()
    there.merge()
    torch.testing.assert_close(network.weight.detach(), adapter.scale.detach()[:, None] * weight)
    torch.testing.assert_close(network.bias.detach(), adapter.scale.detach() * bias + adapter.shift.detach())


def test_experts_have_scales_of_their_own_and_no_shift():
    there = SSF.attach(model(sparse=True), "down_proj", Config(), fresh())
    stacks = [adapter for adapter in there.adapters.values() if adapter.target.stack]
    assert stacks
    for adapter in stacks:
        assert adapter.scale.shape == (4, 16) and adapter.shift is None


def test_values_that_are_not_finite_are_refused():
    network = layer()
    with torch.no_grad():
        network.weight[0, 0] = float("nan")
    with pytest.raises(MixwellError, match="values that are not finite"):
        SSF.attach(network, "all-linear", Config(), fresh())
