"""The nested block: each width against a loop with gradient, whose turn it is, and refusals."""

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.matformer import Config, MatFormer, prefix
from tests.contracts._conversions import block


@pytest.mark.parametrize("step, width", [(0, 8), (1, 4), (2, 2), (3, 8)])
def test_widths_take_turns_in_training(generator, step, width):
    layer = MatFormer(6, Config(hidden_dim=8, factors=(1, 2, 4)), generator).double()
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    found = layer.train()(x, Context(step=step)).y_TD
    units = list(range(width))
    rows = layer.gate_up_proj.detach()[[*units, *(8 + i for i in units)]]
    wanted = torch.stack([block(rows, layer.down_proj.detach()[:, :width], row) for row in x])
    torch.testing.assert_close(found, wanted)
    found.sum().backward()
    touched = layer.down_proj.grad.abs().sum(0) > 0
    assert touched.tolist() == [i < width for i in range(8)]
    torch.testing.assert_close(layer.eval()(x, Context(step=step)).y_TD, layer.at_width(x, 8))


def test_a_prefix_takes_gate_and_up_alike_and_differentiates(generator):
    gate_up, down = (torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True)
                     for s in ((8, 3), (3, 4)))
    into, out = prefix(gate_up, down, 2)
    assert torch.equal(into, gate_up[[0, 1, 4, 5]]) and torch.equal(out, down[:, :2])
    assert torch.autograd.gradcheck(lambda a, b: prefix(a, b, 2), (gate_up, down))


@pytest.mark.parametrize("options", [{"factors": (1, 3)}, {"factors": (0,)}, {"factors": ()}, {"hidden_dim": 0}])
def test_refuses_widths_that_cannot_be(options):
    with pytest.raises(ValueError, match="expected"):
        Config(**{"hidden_dim": 8, **options})
