"""What networks of density promise: every parameter learns, precision does not decide, densities sum up; tags in
`_density`."""

import copy
import itertools

import pytest
import torch

from tests.contracts._density import answer, cases, converted, given, leaves, same
from tests.contracts._tools import fresh


def tensors(value):
    """Floating tensors in a module's result that a gradient passes through."""
    if isinstance(value, torch.Tensor):
        return [value] if value.requires_grad else []
    parts = value if isinstance(value, tuple) else vars(value).values()
    return [tensor for part in parts if not isinstance(part, (int, float, str)) for tensor in tensors(part)]


@pytest.mark.parametrize("entry", cases("module"))
def test_the_gradient_reaches_every_parameter(entry):
    inputs = given(entry)
    module = inputs["module"]
    with torch.no_grad():
        for parameter in module.parameters():  # away from zeros that a start may hold on purpose
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=fresh(1)).to(parameter))
    found = tensors(answer(entry, inputs))
    assert found
    sum((tensor * torch.randn(tensor.shape, generator=fresh(2))).sum() for tensor in found).backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            assert bool(parameter.grad.isfinite().all()) and bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("entry", cases("module", "float32"))
def test_float32_agrees_with_float64(entry):
    single = given(entry)
    double = converted(single, torch.float64)
    one, two = answer(entry, single), answer(entry, double)
    assert all(value.dtype == "float64" for _, value in leaves(two))
    same(one, converted(two, torch.float32), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("entry", cases("module", "density"))
def test_the_density_integrates_to_one(entry):
    inputs = given(entry)
    module = copy.deepcopy(inputs.pop("module"))
    (x_ND,) = inputs.values()
    if "categories" in entry.tags:
        cells = torch.tensor(list(itertools.product((0.0, 1.0), repeat=x_ND.shape[1])))
        assert module(cells).exp().sum().item() == pytest.approx(1, abs=1e-5)
        return
    axis = torch.linspace(-12, 12, 241)
    assert module(torch.cartesian_prod(axis, axis)).exp().sum().item() * 0.1**2 == pytest.approx(1, abs=1e-3)
