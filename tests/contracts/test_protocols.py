"""What every protocol of adapting promises (family `adapters.protocols`): the same again, and no input changed."""

import pytest
import torch

from mixwell.core.checkpoint import Checkpoint
from tests.contracts._tools import cases, fresh, poisoned_memory, same_config

PROTOCOLS = cases("adapters.protocols")


def tensors(value):
    """Every tensor of an example or an answer, by its place."""
    if isinstance(value, torch.Tensor):
        return {"": value.detach().clone()}
    if isinstance(value, Checkpoint):
        value = value.tensors
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if not isinstance(value, dict):
        return {}
    return {f"{name}.{place}": tensor for name, part in value.items() for place, tensor in tensors(part).items()}


@pytest.mark.parametrize("entry", PROTOCOLS)
def test_same_generator_same_bits_from_untouched_inputs(entry):
    values, again = (entry.module().example(fresh()) for _ in range(2))
    before = tensors(values)
    with poisoned_memory():
        first = tensors(entry.load()(**values))
    second = tensors(entry.load()(**again))
    assert first and before and first.keys() == second.keys()
    for place, tensor in first.items():
        assert torch.isfinite(tensor).all() and torch.equal(tensor, second[place]), place
    after = tensors(values)
    assert all(torch.equal(tensor, after[place]) for place, tensor in before.items())


@pytest.mark.parametrize("entry", PROTOCOLS)
def test_config_round_trips(entry):
    assert same_config(entry.module().example(fresh())["config"])
