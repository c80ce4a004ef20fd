"""The dense block against plain matrix algebra."""

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


def test_counts_its_flops(generator):
    assert SwiGLU(6, Config(hidden_dim=5), generator).flops_per_token() == 2 * (6 * 10 + 5 * 6)


def test_refuses_no_width():
    with pytest.raises(ValueError, match="at least 1"):
        Config(hidden_dim=0)
