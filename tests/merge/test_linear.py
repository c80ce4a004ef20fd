"""Linear merge against sums written out, its limits and refusals."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.merge.linear import Config, linear
from mixwell.merge.merging import Model, merged


def draws(count, shape=(3, 4)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def test_the_mean_is_that_of_a_loop(generator):
    tensors, weights = draws(3), (0.2, 1.3, -0.4)
    found = linear(tensors, None, Config(weight=weights), generator)
    for row in range(3):
        for column in range(4):
            numbers = [float(tensor[row, column]) for tensor in tensors]
            total = sum(weight * number for weight, number in zip(weights, numbers))
            assert float(found[row, column]) == pytest.approx(total / sum(weights), rel=1e-5)
    summed = linear(tensors, None, Config(weight=weights, normalize=False), generator)
    torch.testing.assert_close(summed, found * sum(weights))


def test_a_weight_of_nothing_leaves_the_other_model(generator):
    first, second = draws(2)
    assert torch.equal(linear([first, second], None, Config(weight=(0.0, 1.0)), generator), second)


def test_the_gradient_is_the_weight(generator):
    tensors = [tensor.double().requires_grad_() for tensor in draws(2)]
    config = Config(weight=(1.0, 3.0))
    assert torch.autograd.gradcheck(lambda *given: linear(given, None, config, generator), tensors)
    linear(tensors, None, config, generator).sum().backward()
    assert torch.allclose(tensors[1].grad, torch.tensor(0.75, dtype=torch.float64))


def test_weights_that_do_not_fit_are_told(generator):
    models = [Model({"w": tensor}, "m") for tensor in draws(2)]
    with pytest.raises(MixwellError, match="weight lists 3 values for 2 models"):
        merged("linear", models, None, Config(weight=(1.0, 1.0, 1.0)))["w"]
    with pytest.raises(MixwellError, match="the weights sum to 0"):
        merged("linear", models, None, Config(weight=(1.0, -1.0)))["w"]
