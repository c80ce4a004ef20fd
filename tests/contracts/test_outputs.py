"""What methods of `merge.outputs` and `merge.composition` promise: they repeat, and leave their inputs alone."""

import copy

import pytest
import torch
from torch import nn

from tests.contracts._tools import cases, fresh, poisoned_memory, same_config

ENTRIES = [*cases("merge.outputs"), *cases("merge.composition")]


def numbers(value):
    """All tensors in a result, or in the arguments of a call."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return list(value.state_dict().values())
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in numbers(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in numbers(item)]
    return []


@pytest.mark.parametrize("entry", ENTRIES)
def test_it_repeats_and_leaves_its_inputs_alone(entry):
    values = entry.module().example(fresh())
    before = copy.deepcopy([tensor.clone() for tensor in numbers(values)])
    with poisoned_memory():
        first = entry.load()(**values)
        again = entry.load()(**entry.module().example(fresh()))
    assert all(torch.equal(a, b) for a, b in zip(before, numbers(values)))
    found = numbers(first)
    assert all(torch.equal(a, b) for a, b in zip(found, numbers(again), strict=True))
    assert all(torch.isfinite(tensor).all() for tensor in found) and (found or first == again)


@pytest.mark.parametrize("entry", ENTRIES)
def test_config_round_trips(entry):
    module = entry.module()
    assert same_config(module.example(fresh()).get("config", module.Config()))
