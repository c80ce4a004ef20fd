"""Drafts: the answers are those without them, drawn or not, in fewer passes; what guesses is as a loop says."""

import pytest

from mixwell.core.errors import MixwellError
from mixwell.lm.model import LanguageModel
from mixwell.serve.engine import Engine, Limits
from mixwell.serve.smaller import Smaller
from tests.lm.templates import byte_level
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


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 4}])
def test_a_smaller_model_drafts_what_the_model_verifies(model, options):
    """The model itself as its drafter is always right where the likeliest is taken; another one changes no answer."""
    prompts = [[1, 5, 9, 1, 5, 9, 1, 5], [7, 7, 7, 7], list(range(20))]

    def rows():
        return [row(model, prompt, most=15, **options) for prompt in prompts]

    plain, _ = said(model, rows(), max_rows=3, step_tokens=32)
    other = small_model({"method": "sequence.latent_attention", "kv_rank": 6, "nope_dim": 4, "rope_dim": 4,
                         "value_dim": 6})
    for smaller in (model, other):
        found = Engine(model, Limits(step_tokens=32, max_rows=3, block=4), smaller=smaller)
        answers = rows()
        finish(found, answers)
        assert [one.said for one in answers] == [ids for ids, _ in plain]
        facts = found.facts()
        assert facts["drafted_tokens"] > 0
        if smaller is model and not options:
            assert facts["drafted_held"] == facts["drafted_tokens"] == 3 * (15 - 1 - 3)


def test_a_drafter_goes_back_to_where_it_was_right(model):
    """Against a drafter that reads each row anew, whatever the row became."""
    drafter = Smaller(model, width=3)
    for ids in ([1, 2, 3], [1, 2, 3, 9, 9], [1, 2, 3, 9, 4, 4], [1, 2], [8, 2, 5], [8, 2, 5]):
        assert drafter.draft(ids, 1, 30) == Smaller(model, width=3).draft(ids, 1, 30)
    assert drafter.draft([8, 2], 1, 3) == Smaller(model, width=1).draft([8, 2], 1, 3) and not drafter.draft([8], 2, 3)
    slow = Smaller(model, width=3, at_once=2)
    found = [slow.draft([1, 2, 3, 9, 9], 1, 30) for _ in range(3)]
    assert found == [[], [], Smaller(model, width=3).draft([1, 2, 3, 9, 9], 1, 30)]
    assert not slow.draft(list(range(95)), 1, 30)  # beyond its positions


def test_a_model_that_cannot_draft_is_refused(model):
    other = small_model({"method": "sequence.mamba"})
    with pytest.raises(MixwellError, match="cannot go back; take another"):
        Engine(model, smaller=other)
    other.tokenizer = byte_level("chatml")
    with pytest.raises(MixwellError, match="has other tokens"):
        Engine(model, smaller=other)
    with pytest.raises(MixwellError, match="no tokenizer"):
        Engine(model, smaller=LanguageModel(model.config))
    with pytest.raises(MixwellError, match="leave one out"):
        Engine(model, Limits(draft="lookup"), smaller=model)
