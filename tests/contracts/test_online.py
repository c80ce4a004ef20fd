"""What every rule that chooses domains while training promises (family `data.online`)."""

import dataclasses
import json

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.data.rule import Batch, Online
from tests.contracts._tools import cases

RULES = cases("data.online")


def given(entry):
    values = entry.module().example(np.random.default_rng(0))
    return values["rule"], values["batches"]


def changed(batch, rows):
    return Batch(**{name: None if value is None else value[rows] for name, value in vars(batch).items()})


@pytest.mark.parametrize("entry", RULES)
def test_weights_are_above_zero_and_sum_to_one_and_arguments_stay(entry):
    rule, batches = given(entry)
    state = rule.start()
    for batch in batches:
        before = {name: value.copy() for name, value in state.items()}
        columns = {name: value.copy() for name, value in vars(batch).items()}
        after, again = rule.update(state, batch), rule.update(state, batch)
        for name, value in before.items():
            assert np.array_equal(state[name], value) and np.array_equal(after[name], again[name])
        for name, value in columns.items():
            assert np.array_equal(getattr(batch, name), value)
        state = after
        for weights_D in (rule.weights(state), rule.result(state)):
            assert weights_D.shape == (rule.domains,) and (weights_D > 0).all()
            assert weights_D.sum() == pytest.approx(1, abs=1e-12)
    assert np.ptp(rule.weights(state)) > 1e-3  # it follows what it is told


@pytest.mark.parametrize("entry", RULES)
def test_a_training_goes_on_from_its_checkpoint_with_the_same_bits(entry):
    rule, batches = given(entry)
    whole, first = Online(rule), Online(rule)
    for batch in batches:
        whole.update(batch)
    for batch in batches[:10]:
        first.update(batch)
    kept = json.loads(json.dumps({name: value.tolist() for name, value in first.state_dict().items()}))
    for batch in batches[10:12]:
        first.update(batch)  # what is kept stays as it was
    second = Online(rule)
    second.load_state_dict(kept)
    for batch in batches[10:]:
        second.update(batch)
    assert np.array_equal(whole.weights_D, second.weights_D) and np.array_equal(whole.result_D, second.result_D)


@pytest.mark.parametrize("entry", RULES)
def test_numbers_of_domains_and_order_of_tokens_do_not_count(entry):
    rule, batches = given(entry)
    plain, turned = Online(rule), Online(rule)
    place = np.array([2, 0, 3, 1])  # new number of each domain
    for batch in batches:
        plain.update(batch)
        moved = dataclasses.replace(batch, domain_T=place[batch.domain_T])
        turned.update(changed(moved, slice(None, None, -1)))
    assert turned.weights_D[place] == pytest.approx(plain.weights_D)


@pytest.mark.parametrize("entry", RULES)
def test_batches_without_some_domains_are_taken(entry):
    rule, batches = given(entry)
    online = Online(rule)
    for batch in batches:
        online.update(changed(batch, batch.domain_T == 1))
    assert np.isfinite(online.weights_D).all() and (online.weights_D > 0).all()
    assert online.weights_D[[0, 2, 3]] == pytest.approx(online.weights_D[0])  # nothing tells them apart


@pytest.mark.parametrize("entry", RULES)
def test_bad_batches_and_states_end_in_one_line(entry):
    rule, (batch, *_) = given(entry)
    state = rule.start()

    def refused(message, **values):
        with pytest.raises(MixwellError, match=message):
            rule.update(state, dataclasses.replace(batch, **values))

    refused("loss_T holds a number that is not finite", loss_T=np.full(64, np.nan))
    refused("loss_T has 3 entries where domain_T has 64", loss_T=np.ones(3))
    refused("goes from 4 to 4; expected 0 to 3", domain_T=np.full(64, 4))
    refused("from -1", domain_T=np.full(64, -1))
    with pytest.raises(MixwellError, match="the batch is empty"):
        rule.update(state, changed(batch, slice(0, 0)))
    with pytest.raises(MixwellError, match="1 domain came"):
        type(rule)(1)
    online = Online(rule)
    with pytest.raises(MixwellError, match="the state has x; expected"):
        online.load_state_dict({"x": 1})
    first = next(iter(state))
    with pytest.raises(MixwellError, match=rf"{first} has the shape \(9,\); expected"):
        online.load_state_dict({**state, first: np.ones(9)})
