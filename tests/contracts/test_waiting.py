"""What methods promise that wait in their room for a family of their own: numbers and inputs, but no contract yet."""

import dataclasses
import inspect

import pytest
import torch

from mixwell.core import registry
from mixwell.core.routing import Context
from tests.contracts._tools import fresh, poisoned_memory, same_config

# rooms that are one family, with a suite of their own
FAMILIES = {"sequence", "convert", "precision", "merge", "adapters", "scaling", "serve"}
WAITING = [pytest.param(e, id=e.name) for e in registry.entries() if e.family == e.room and e.room not in FAMILIES]


def answer(entry, values):
    """What the method says of its example: a function of it, or a module that is built and called."""
    target = entry.load()
    if not inspect.isclass(target):
        return target(**values)
    built = inspect.signature(target).parameters
    module = target(**{name: value for name, value in values.items() if name in built}, generator=fresh(1))
    return module(**{name: value for name, value in values.items() if name not in built})


def tensors(value):
    """Every tensor of an example or an answer, by its place."""
    if isinstance(value, torch.Tensor):
        return {"": value.detach()}
    if isinstance(value, Context):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if not isinstance(value, dict):
        return {}
    return {f"{name}.{place}": tensor for name, part in value.items() for place, tensor in tensors(part).items()}


@pytest.mark.parametrize("entry", WAITING)
def test_same_generator_same_bits_from_untouched_inputs_and_written_memory(entry):
    module = entry.module()
    values, again = module.example(fresh()), module.example(fresh())
    before = {place: tensor.clone() for place, tensor in tensors(values).items()}
    with poisoned_memory():
        first = tensors(answer(entry, values))
    second = tensors(answer(entry, again))
    assert first and first.keys() == second.keys()
    for place, tensor in first.items():
        assert torch.isfinite(tensor).all() and torch.equal(tensor, second[place]), place
    assert before
    for place, tensor in tensors(values).items():
        assert torch.equal(tensor, before[place]), place


@pytest.mark.parametrize("entry", WAITING)
def test_config_round_trips(entry):
    assert same_config(entry.module().example(fresh())["config"])


def test_every_method_stands_under_a_contract():
    """A family's suite finds its methods by the registry; here are those that have no family."""
    suites = {"experts.routers", "experts.layers", "experts.balance", "experts.overflow", "experts.analysis",
              "scaling.laws", "scaling.search", "data.mixing", "data.online", "data.selection", "data.distillation",
              "merge.outputs", "merge.composition", "parallel.federated", "adapters.protocols", "serve.keeping",
              "precision.activations", "precision.sparse", "precision.structured", "precision.training",
              "serve.scheduling", *FAMILIES}
    waiting = {p.values[0].name for p in WAITING}
    apart = [e.name for e in registry.entries()
             if e.family not in suites and e.room != "density" and e.name not in waiting]
    assert not apart
