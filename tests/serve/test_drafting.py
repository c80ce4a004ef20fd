"""Drafts: the answers are those without them, drawn or not, in fewer passes; what guesses is as a loop says."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.model import LanguageModel
from mixwell.serve.branching import Branching, chain, depths, first_nodes, no_deeper, path_to
from mixwell.serve.engine import Engine, Limits
from mixwell.serve.paged import PagedRows, Piece, widths
from mixwell.serve.smaller import Smaller
from mixwell.serve.tree_drafts import Tree, grown
from tests.lm.templates import byte_level
from tests.serve.conftest import engine, finish, row, small_model


def said(model, rows, **limits):
    found = engine(model, **limits)
    events = finish(found, rows)
    return [(one.said, "".join(event.text for event in events if event.row is one)) for one in rows], found


@pytest.mark.parametrize("draft", ["jacobi", "lookup", "tree"])
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


EMPTY = Tree([], [])
TREE = grown([(5, 6, 7), (5, 9), (3,), (5, 6, 8, 1), (3, 2)])  # nodes of a branch stand apart in it


@pytest.mark.parametrize("blocks", [[2, 3, 4, 5], [6, 1, 4, 3]], ids=["run", "scattered"])
@pytest.mark.parametrize("bits", [None, 8])
def test_nodes_of_a_tree_see_the_row_and_their_branch(model, blocks, bits):
    """Each as if its branch alone had been read; then what held is the row's."""
    def fresh():
        return PagedRows(model, 8, 4, widths(model), bits=bits)

    def read(rows, ids, start, drafts=EMPTY):
        every = [*ids, *drafts.tokens]
        return rows.read([Piece(every, start, blocks, len(every), drafts=drafts)])[0]

    ids = [1, 8, 2, 9, 4, 7, 3]
    rows = fresh()
    read(rows, ids[:5], 0)
    found = read(rows, ids[5:], 5, TREE).logits_NV
    for node in range(len(TREE.tokens)):
        alone = fresh()
        read(alone, ids[:5], 0)
        expected = read(alone, [*ids[5:], *TREE.branch(node)], 5).logits_NV
        torch.testing.assert_close(found[2 + node], expected[-1], rtol=0, atol=1e-10)
        torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=1e-10)
    held = path_to(TREE, TREE.tokens.index(1))
    rows.settle(0, held)
    alone = fresh()
    for piece, start in ((ids[:5], 0), (ids[5:], 5), ([5, 6, 8, 1], 7)):
        read(alone, piece, start)
    after, expected = (read(each, [30], 11).logits_NV for each in (rows, alone))
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-10)


def test_branches_hold_that_are_not_the_first(model):
    """What follows a token was two things so far; the row goes on with the one that it said less lately."""
    guesses = Branching(branches=2, length=2)
    tree = guesses.draft([4, 1, 2, 9, 4, 3, 5, 9, 4], 3, 20)
    assert {tuple(tree.branch(node)) for node in range(len(tree.tokens))} >= {(1, 2), (3, 5)}
    assert guesses.draft([4, 1, 2, 9, 4, 3, 5, 9, 4, 1], 4, 20).branch(1) == [2, 9]
    assert guesses.draft([4, 1], 3, 4) == Tree([], [])
    assert no_deeper(TREE, 1) == Tree([5, 3], [-1, -1]) and first_nodes(TREE, 2) == Tree([5, 6], [-1, 0])
    assert depths(TREE) == [1, 2, 3, 2, 1, 3, 4, 2] and chain([4, 5]) == Tree([4, 5], [-1, 0])


def test_drafts_take_no_block_that_another_row_needs(model):
    prompts = [[1, 2, 1, 2, 1, 2], [3, 4, 3, 4, 3, 4], [5, 6, 5, 6]]
    rows = [row(model, prompt, most=20) for prompt in prompts]
    again = [row(model, prompt, most=20) for prompt in prompts]
    tight = 26 * engine(model).position_bytes * 4
    plain, _ = said(model, rows)
    found, small = said(model, again, draft="jacobi", cache_bytes=tight)
    assert found == plain and small.pool.count == 26


def test_drafts_are_refused_where_they_cannot_be(model):
    with pytest.raises(MixwellError, match="expected jacobi or lookup or tree"):
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
