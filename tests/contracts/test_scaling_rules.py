"""What rules of width and rate promise that belong to no family of laws: the same answer again, inputs untouched."""

import copy
import inspect

import numpy as np
import pytest

from mixwell.core import registry
from tests.contracts._tools import fresh, same_config

RULES = [pytest.param(e, id=e.name) for e in registry.entries() if e.family == e.room == "scaling"]


def example(module):
    """The smallest inputs, from a generator of the kind that the method asks for."""
    kind = str(inspect.signature(module.example).parameters["generator"].annotation)
    return module.example(fresh() if kind.startswith("torch") else np.random.default_rng(0))


@pytest.mark.parametrize("entry", RULES)
def test_the_same_answer_again_from_untouched_inputs(entry):
    module = entry.module()
    values, again = example(module), example(module)
    before = copy.deepcopy(values)
    found = repr(entry.load()(**values))
    assert "nan" not in found and found == repr(entry.load()(**again))
    assert repr(values) == repr(before)


@pytest.mark.parametrize("entry", RULES)
def test_config_round_trips(entry):
    assert same_config(example(entry.module())["config"])
