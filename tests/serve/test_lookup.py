"""Drafts by look-up against a loop over the row."""

import pytest

from mixwell.serve import lookup


def test_lookup_finds_the_latest_place_as_a_loop_does():
    ids = [1, 2, 3, 4, 1, 2, 3, 5, 9, 2, 3]
    finder = lookup.Lookup(lookup.Config(most=3, least=2, width=3))
    places = [p for p in range(2, len(ids)) if ids[p - 2 : p] == [2, 3]]
    assert finder.draft(ids, 0, 20) == ids[places[-1] : places[-1] + 3] == [5, 9, 2]
    assert finder.draft(ids, 18, 20) == [5]  # no further than the answer goes
    assert finder.draft(ids, 19, 20) == [] and finder.draft([1, 2, 3], 0, 20) == []
    assert lookup.Lookup(lookup.Config(most=1, least=1)).draft([4, 4], 0, 9) == [4]
    for wrong in ({"least": 0}, {"least": 4}, {"width": 0}):
        with pytest.raises(ValueError, match="expected"):
            lookup.Config(**wrong)
