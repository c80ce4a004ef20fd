"""What every method of density promises, asked of each from its own `example`; see `_density` for the tags."""

import copy

import numpy as np
import pytest

from tests.contracts._density import CONTRACTS, METHODS, PROMISES, answer, answered, fitted, given, leaves, same
from tests.contracts._tools import poisoned_memory

ALL = [pytest.param(e, id=e.name.removeprefix("density.")) for e in METHODS]


@pytest.mark.parametrize("entry", ALL)
def test_a_method_has_one_contract_and_no_tag_that_nobody_reads(entry):
    assert len(entry.tags & CONTRACTS) == 1
    assert entry.tags <= CONTRACTS | PROMISES, f"no suite reads {entry.tags - CONTRACTS - PROMISES}"


@pytest.mark.parametrize("entry", ALL)
def test_same_generator_same_bits_from_untouched_inputs_and_written_memory(entry):
    """An estimator is fitted again where it was fitted before, so that a fit that remembers shows, too."""
    inputs = given(entry)
    if "estimator" in entry.tags:
        first = fitted(entry)[0]
        inputs["estimator"] = copy.deepcopy(first)
    else:
        first = answered(entry)
    before = {path: value.copy() for path, value in leaves(numbers(inputs))}
    with poisoned_memory():
        second = answer(entry, inputs, refit=True)
    same(first, second)
    for path, value in leaves(numbers(inputs)):
        np.testing.assert_array_equal(value, before[path], err_msg=path)


def numbers(inputs):
    """What a method may not change: everything but the estimator that is fitted, and the generator that moves on."""
    return {name: value for name, value in inputs.items() if name not in ("estimator", "generator")}
