"""What the contract suites share."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import contextmanager

import torch

from mixwell.core import registry
from mixwell.core.config import from_dict, to_dict
from mixwell.core.routing import Context


def cases(prefix, without=()):
    """pytest parameters: every method of a family but those with a tag in `without`."""
    import pytest

    return [pytest.param(e, id=e.name) for e in registry.family(prefix) if not e.tags & set(without)]


def fresh(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example(entry, **changes):
    """The method's own example, with config fields replaced."""
    values = dict(entry.module().example(fresh()))
    if changes:
        values["config"] = dataclasses.replace(values["config"], **changes)
    values.setdefault("context", Context())
    return values


def same_config(config) -> bool:
    return from_dict(type(config), to_dict(config)) == config


def widen(context: Context) -> Context:
    """The same context in float64."""
    state = context.state
    if state is None or not state.is_floating_point():
        return context
    return dataclasses.replace(context, state=state.double())


def seeded(context: Context) -> Context:
    """The same context with a fresh generator where it has one."""
    return dataclasses.replace(context, generator=fresh(3)) if context.generator is not None else context


def double(module):
    return copy.deepcopy(module).double()


@contextmanager
def poisoned_memory():
    """Uninitialised memory reads as NaN, so that a value nobody wrote shows; torch's own generator may not be used."""
    hidden = torch.random.get_rng_state()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
        assert torch.equal(torch.random.get_rng_state(), hidden), "something was drawn from torch's global generator"
    finally:
        torch.use_deterministic_algorithms(False)
