"""What is rounded as it is computed (family `precision.activations`): pure, and close to what it stands for."""

import pytest
import torch

from tests.contracts._tools import cases, fresh, poisoned_memory, same_config

METHODS = cases("precision.activations")


def tensors(values):
    return {name: value.clone() for name, value in values.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("entry", METHODS)
def test_same_generator_same_bits_from_untouched_inputs_and_written_memory(entry):
    values, again = (entry.module().example(fresh()) for _ in range(2))
    before = tensors(values)
    with poisoned_memory():
        first = entry.load()(**values)
    second = entry.load()(**again)
    assert before and torch.equal(first.values, second.values) and first.bits == second.bits
    assert all(torch.equal(values[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("entry", METHODS)
def test_stands_for_the_exact_numbers(entry):
    values = entry.module().example(fresh())
    found = entry.load()(**values)
    assert found.values.shape == found.exact.shape and not torch.equal(found.values, found.exact)
    error = (found.values - found.exact).square().sum() / found.exact.square().sum()
    assert 0 < float(error) < 0.1 and found.bits > 0


@pytest.mark.parametrize("entry", METHODS)
def test_float32_agrees_with_float64(entry):
    values = entry.module().example(fresh())
    narrow = entry.load()(**values).values
    again = entry.module().example(fresh())
    wide = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in again.items()}
    torch.testing.assert_close(narrow.double(), entry.load()(**wide).values.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("entry", METHODS)
def test_config_round_trips(entry):
    assert same_config(entry.module().example(fresh())["config"])
