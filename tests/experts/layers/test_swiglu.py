"""The dense block against plain matrix algebra."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.swiglu import Config, SwiGLU


def test_agrees_with_the_equation_and_its_gradient(generator):
    layer = SwiGLU(6, Config(hidden_dim=5), generator).double()
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    gate, up = layer.gate_up_proj[:5], layer.gate_up_proj[5:]
    h = x @ gate.T
    expected = (h / (1 + (-h).exp()) * (x @ up.T)) @ layer.down_proj.T
    found = layer(x, Context()).y_TD
    torch.testing.assert_close(found, expected)
    leaves = [x, *layer.parameters()]
    for a, b in zip(torch.autograd.grad(found.square().sum(), leaves),
                    torch.autograd.grad(expected.square().sum(), leaves)):
        torch.testing.assert_close(a, b)


ACTIVATIONS = {
    "silu": lambda x: x / (1 + (-x).exp()),
    "relu": lambda x: x * (x > 0),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_other_activations_biases_and_no_gate(activation, gated, bias, generator):
    layer = SwiGLU(6, Config(hidden_dim=5, activation=activation, gated=gated, bias=bias), generator).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    named = dict(layer.named_parameters())
    into = named["gate_up_proj" if gated else "up_proj"]
    h = x @ into.T + (named["gate_up_bias" if gated else "up_bias"] if bias else 0)
    act = ACTIVATIONS[activation]
    h = act(h[:, :5]) * h[:, 5:] if gated else act(h)
    expected = h @ layer.down_proj.T + (layer.down_bias if bias else 0)
    found = layer(x, Context()).y_TD
    torch.testing.assert_close(found, expected)
    leaves = [x, *layer.parameters()]
    assert len(leaves) == (5 if bias else 3)
    for a, b in zip(torch.autograd.grad(found.square().sum(), leaves),
                    torch.autograd.grad(expected.square().sum(), leaves)):
        torch.testing.assert_close(a, b)
    assert layer.flops_per_token() == 2 * 6 * 5 * (3 if gated else 2)


def test_counts_its_flops(generator):
    assert SwiGLU(6, Config(hidden_dim=5), generator).flops_per_token() == 2 * (6 * 10 + 5 * 6)


def test_refuses_no_width():
    with pytest.raises(ValueError, match="at least 1"):
        Config(hidden_dim=0)
