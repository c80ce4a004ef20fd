"""Drafts: the answers are those without them, drawn or not, in fewer passes; what guesses is as a loop says."""

import pytest

from mixwell.core.errors import MixwellError
from mixwell.serve import jacobi, lookup
from tests.serve.conftest import engine, finish, row, small_model


def said(model, rows, **limits):
    found = engine(model, **limits)
    events = finish(found, rows)
    return [(one.said, "".join(event.text for event in events if event.row is one)) for one in rows], found


@pytest.mark.parametrize("draft", ["jacobi", "lookup"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 4}, {"temperature": 0.9, "seed": 1,
                                                                           "repetition_penalty": 1.3}])
def test_answers_are_the_same_in_fewer_passes(model, draft, options):
    prompts = [[1, 5, 9, 1, 5, 9, 1, 5], [7, 7, 7, 7], list(range(20))]

    def rows():
        return [row(model, prompt, most=24, logprobs=1, experts=True, **options) for prompt in prompts]

    plain, _ = said(model, rows(), max_rows=3, step_tokens=32)
    together, _ = said(model, rows(), max_rows=3, step_tokens=32, draft=draft)
    assert together == plain
    one_by_one, without = said(model, rows(), max_rows=1, step_tokens=32)
    found, drafted = said(model, rows(), max_rows=1, step_tokens=32, draft=draft)
    assert found == one_by_one == plain
    facts = drafted.facts()
    assert facts["drafted_held"] <= facts["drafted_tokens"] and facts["generated_tokens"] == 72
    assert drafted.steps == without.steps - facts["drafted_held"]  # each guess that holds saves a pass
    if not options:
        assert facts["drafted_held"] > 0


def test_drafts_take_no_block_that_another_row_needs(model):
    prompts = [[1, 2, 1, 2, 1, 2], [3, 4, 3, 4, 3, 4], [5, 6, 5, 6]]
    rows = [row(model, prompt, most=20) for prompt in prompts]
    again = [row(model, prompt, most=20) for prompt in prompts]
    tight = 26 * engine(model).position_bytes * 4
    plain, _ = said(model, rows)
    found, small = said(model, again, draft="jacobi", cache_bytes=tight)
    assert found == plain and small.pool.count == 26


def test_jacobi_keeps_what_the_pass_predicted_behind_what_was_accepted():
    config = jacobi.Config(first=4, last=2)
    assert [jacobi.window(config, at, 9) for at in range(9)] == [4, 4, 4, 3, 3, 3, 2, 1, 0]
    guesser = jacobi.Jacobi(config)
    assert guesser.draft([3, 8], 0, 9) == [8, 8, 8, 8]  # nothing is known yet
    guesser.learn([5, 6, 7, 9, 9], 2)
    assert guesser.draft([3, 8, 5, 6], 2, 9) == [7, 9, 9, 9]
    with pytest.raises(ValueError, match="1 <= last <= first"):
        jacobi.Config(first=2, last=3)


def test_jacobi_accepts_its_whole_window_where_guesses_do_not_hang_on_each_other():
    """A model that goes by the position alone: what it predicts behind wrong guesses holds, and the next pass accepts
    it all and one token more."""
    guesser = jacobi.Jacobi(jacobi.Config(first=4, last=4))
    ids, accepted = [100], []
    while len(ids) < 30:
        guesses = guesser.draft(ids, len(ids) - 1, 1000)
        predicted = [200 + len(ids) + place for place in range(len(guesses) + 1)]
        count = 1
        while count <= len(guesses) and guesses[count - 1] == predicted[count - 1]:
            count += 1
        ids += predicted[:count]
        guesser.learn(predicted, count)
        accepted.append(count)
    assert ids == [100, *range(201, 200 + len(ids))]
    assert accepted[:6] == [1, 5, 1, 5, 1, 5]


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


def test_drafts_are_refused_where_they_cannot_be(model):
    with pytest.raises(MixwellError, match="expected jacobi or lookup"):
        engine(model, draft="medusa")
    with pytest.raises(MixwellError, match="can go back"):
        engine(small_model({"method": "sequence.mamba"}), draft="jacobi")
