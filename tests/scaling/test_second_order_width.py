"""The step against inverses written out, its limits, and features that move alike at every width."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.scaling.feature_learning import slope
from mixwell.scaling.second_order_width import Config, example, exponents, second_order_width


def values():
    return example(torch.Generator().manual_seed(0))


def test_kfac_is_two_damped_inverses_around_the_gradient():
    given = values()
    given["config"] = Config(damping=0.1)
    factors = []
    for rows in (given["errors_TO"], given["inputs_TI"]):
        size = rows.shape[1]
        factor = torch.zeros(size, size, dtype=torch.float64)
        for row in rows:
            factor += torch.outer(row, row) / 40
        total = sum(float(factor[i, i]) for i in range(size))
        factors.append(factor + 0.1 * total * torch.eye(size, dtype=torch.float64))
    wanted = torch.linalg.inv(factors[0]) @ given["gradient_OI"] @ torch.linalg.inv(factors[1])
    assert torch.allclose(second_order_width(**given), wanted, atol=1e-10)


def test_shampoo_twice_is_kfac_and_powers_of_zero_are_gradient_descent():
    given = values()
    half = Config(inputs=0.5, outputs=0.5)
    once = second_order_width(**{**given, "config": half})
    twice = second_order_width(**{**given, "gradient_OI": once, "config": half})
    assert torch.allclose(twice, second_order_width(**given), atol=1e-8)
    plain = Config(inputs=0, outputs=0)
    assert torch.equal(second_order_width(**{**given, "config": plain}), given["gradient_OI"])
    assert exponents(plain) == {"first": (0, -1), "between": (0.5, 0), "last": (1, 1)}
    assert [one.rate for one in exponents(Config()).values()] == [0, 0, 0]
    assert [one.rate for one in exponents(half).values()] == [-0.5, 0, 0.5]


def test_rows_of_zeros_step_by_the_other_factor_alone():
    given = values()
    given["errors_TO"] = torch.zeros(40, 3, dtype=torch.float64)
    found = second_order_width(**given)
    alone = second_order_width(**{**given, "config": Config(outputs=0)})
    assert torch.isfinite(found).all() and torch.equal(found, alone)


def moved(config, width, seed):
    """Mean squares by which a step of one layer alone moves the last hidden layer, or the output: [3] layers."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(16, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(16, 1, generator=generator, dtype=torch.float64)
    scale = list(exponents(config).values())
    sizes = [6, width, width, 1]
    weights = [width**-one.start * torch.randn(out, into, generator=generator, dtype=torch.float64)
               for one, into, out in zip(scale, sizes, sizes[1:])]

    def forward(weights):
        inputs, before = [draw], []
        for weight in weights:
            before.append((inputs[-1] @ weight.T).requires_grad_())
            inputs.append(torch.tanh(before[-1]))
        return inputs, before

    inputs, before = forward(weights)
    errors = torch.autograd.grad((before[-1] - y).square().sum() / 2, before)
    moves = []
    for layer, (h, d, one) in enumerate(zip(inputs, errors, scale)):
        step = second_order_width(d.T @ h.detach() / 16, h.detach(), d, config)
        new = [weight.clone() for weight in weights]
        new[layer] -= 0.002 * width**-one.rate * step
        after = forward(new)
        off = after[1][2] - before[2] if layer == 2 else after[0][2] - inputs[2]
        moves.append(float(off.detach().square().mean()))
    return torch.tensor(moves)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_every_layers_step_moves_what_follows_alike_at_every_width(power):
    config = Config(inputs=power, outputs=power, damping=0.1)
    widths = [64, 256]
    sizes = torch.stack([sum(moved(config, width, seed) for seed in range(8)) for width in widths]).sqrt()
    for layer in range(3):
        assert abs(slope(widths, sizes[:, layer])) < 0.2  # a wrong exponent is off by a half or by one


def test_refusals():
    with pytest.raises(MixwellError, match=r"shape \(3, 4\); inputs and errors say \(3, 5\)"):
        second_order_width(**{**values(), "gradient_OI": torch.ones(3, 4)})
    for bad in ({"inputs": 2}, {"outputs": -1}, {"damping": 0}):
        with pytest.raises(ValueError, match="expected"):
            Config(**bad)
