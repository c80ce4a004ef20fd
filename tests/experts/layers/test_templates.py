"""The block of templates against a loop; coefficients that leave out what blocks have already."""

import math

import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.layers.swiglu import Config as DenseConfig
from mixwell.experts.layers.swiglu import SwiGLU
from mixwell.experts.layers.templates import Config, Templates, least_aligned, widened
from tests.experts.layers._loops import enlarged, same_forward_and_gradient, silu, tokens


def mixed(coefficients, templates):
    return sum(a * template for a, template in zip(coefficients, templates))


@pytest.mark.parametrize("templates, blocks", [(2, 1), (3, 2), (2, 3)])
def test_agrees_with_a_loop_forward_and_gradient(generator, templates, blocks):
    layer = enlarged(Templates(6, Config(hidden_dim=5, templates=templates, blocks=blocks), generator), 8.0)
    x = tokens(generator)
    rows = []
    for token in x:
        y = 0
        for b in range(blocks):
            a_gate, a_up, a_down = layer.coefficients[:, b]
            gate = mixed(a_gate, layer.gate_up_proj[:, :5]) @ token
            up = mixed(a_up, layer.gate_up_proj[:, 5:]) @ token
            y = y + mixed(a_down, layer.down_proj) @ (silu(gate) * up)
        rows.append(y)
    leaves = [x, *layer.parameters()]
    same_forward_and_gradient(layer(x, Context()).y_TD, torch.stack(rows), leaves, generator)


def test_one_template_counted_once_is_the_dense_block(generator):
    layer = Templates(6, Config(hidden_dim=5, templates=1), generator)
    dense = SwiGLU(6, DenseConfig(hidden_dim=5), generator)
    with torch.no_grad():
        layer.coefficients.fill_(1)
        dense.gate_up_proj.copy_(layer.gate_up_proj[0])
        dense.down_proj.copy_(layer.down_proj[0])
    x = torch.randn(9, 6, generator=generator)
    torch.testing.assert_close(layer(x, Context()).y_TD, dense(x, Context()).y_TD)


def test_blocks_start_with_coefficients_at_right_angles(generator):
    layer = Templates(6, Config(hidden_dim=5, templates=4, blocks=4), generator)
    for rows in layer.coefficients:
        torch.testing.assert_close(rows @ rows.T, torch.eye(4), atol=1e-5, rtol=0)


def test_where_no_vector_is_orthogonal_the_one_found_is_least_aligned(generator):
    rows = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    angles = [math.pi * step / 20_000 for step in range(20_000)]
    circle = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles], dtype=torch.float64)
    best = circle[(circle @ rows.T).norm(dim=1).argmin()]
    found = least_aligned(rows)
    assert abs(float(found @ best)) > 1 - 1e-6 and abs(float(found.norm()) - 1) < 1e-12


def test_what_is_there_stays_when_coefficients_are_widened(generator):
    rows = torch.randn(1, 3, generator=generator)
    assert torch.equal(widened(rows, 0), rows) and torch.equal(widened(rows, 2)[:1], rows)


def test_counts_its_flops(generator):
    assert Templates(6, Config(hidden_dim=5, blocks=3), generator).flops_per_token() == 6 * 6 * 15


@pytest.mark.parametrize("name", ["hidden_dim", "templates", "blocks"])
def test_refuses_what_is_below_one(name):
    with pytest.raises(ValueError, match=f"{name} is 0; expected at least 1"):
        Config(**{"hidden_dim": 3, name: 0})
