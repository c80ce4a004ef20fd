"""Drafts: the answers are those without them, drawn or not, in fewer passes; what guesses is as a loop says."""

import pytest

from mixwell.core.errors import MixwellError
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


def test_drafts_are_refused_where_they_cannot_be(model):
    with pytest.raises(MixwellError, match="expected jacobi or lookup"):
        engine(model, draft="medusa")
    with pytest.raises(MixwellError, match="can go back"):
        engine(small_model({"method": "sequence.mamba"}), draft="jacobi")
