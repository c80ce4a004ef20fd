"""What guesses what a row says next: pure, within the length that is asked for, and sound after any pass."""

import pytest

from mixwell.core import registry
from tests.contracts._tools import fresh, same_config

DRAFTS = [pytest.param(e, id=e.name) for e in registry.entries() if e.family == "serve"]


@pytest.mark.parametrize("entry", DRAFTS)
def test_guesses_are_ids_within_what_is_asked_for_and_inputs_stay(entry):
    values = entry.module().example(fresh())
    before = list(values["ids"])
    one, other = (entry.load()(entry.module().Config()) for _ in range(2))
    for longest in (values["longest"], 1, 0):
        asked = {**values, "longest": longest}
        found = one.draft(**asked)
        assert found == other.draft(**asked) and len(found) <= longest
        assert all(isinstance(number, int) and number >= 0 for number in found)
    assert values["ids"] == before


@pytest.mark.parametrize("entry", DRAFTS)
def test_any_pass_can_be_taken_in(entry):
    values = entry.module().example(fresh())
    draft = entry.load()(entry.module().Config())
    for predicted, accepted in (([7], 1), ([7, 8, 9], 1), ([7, 8, 9], 3), ([1, 2, 3, 4], 2)):
        draft.draft(**values)
        draft.learn(predicted, accepted)
        assert len(draft.draft(**values)) <= values["longest"]


@pytest.mark.parametrize("entry", DRAFTS)
def test_config_round_trips(entry):
    assert same_config(entry.module().Config())
