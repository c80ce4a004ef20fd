"""Rows answered together are answered as each alone, whatever was cached, cut, shared, cancelled or sent back."""

import dataclasses
import random

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.serve.engine import Engine, Limits
from mixwell.serve.loads import Loads
from mixwell.serve.packing import side_by_side
from tests.serve.conftest import ATTENTION, LATENT, MOE, engine, finish, row, small_model

CAUSAL = {"method": "experts.layers.moe", "num_experts": 3, "hidden_dim": 8, "capacity_factor": 1.0,
          "router": {"method": "top_k", "k": 2}}
OF_WORDS = {**MOE, "router": {"method": "word_table"}}


def prompts(count, longest=50, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(250) for _ in range(draw.randrange(1, longest))] for _ in range(count)]


def alone(model, prompt, most=12):
    """What `generate` says, which knows no blocks, pieces or neighbours."""
    found = model.generate(torch.tensor([prompt]), most, eos_token_id=(), do_sample=False)
    return found[0].tolist()


@pytest.mark.parametrize("mixer", [ATTENTION, {**ATTENTION, "sliding_window": 7}, LATENT],
                         ids=["attention", "window", "latent"])
def test_answers_are_those_of_each_row_alone(mixer):
    model = small_model(mixer)
    found = engine(model)
    assert found.packed
    rows = [row(model, prompt) for prompt in prompts(9)]
    finish(found, rows)
    assert [one.ids for one in rows] == [alone(model, one.prompt) for one in rows]
    answers = {tuple(one.said) for one in rows}
    assert len(answers) > 5  # they hang on the prompts


def test_rows_that_look_at_each_other_are_read_one_by_one():
    for model in (small_model(channel_mixer=CAUSAL), small_model({"method": "sequence.mamba"})):
        assert not side_by_side(model.config)
        found = engine(model)
        rows = [row(model, prompt, 6) for prompt in prompts(4, 30)]
        finish(found, rows)
        assert [one.ids for one in rows] == [alone(model, one.prompt, 6) for one in rows]
        assert not found.rows.caches


def test_what_reads_a_row_together_is_told_from_what_reads_tokens():
    config = small_model().config
    by_words = (OF_WORDS, MOE)
    assert side_by_side(config)
    assert not side_by_side(dataclasses.replace(config, channel_mixer=by_words))
    assert not side_by_side(dataclasses.replace(config, channel_mixer={"method": "experts.layers.soft_moe",
                                                                       "num_experts": 2, "hidden_dim": 8}))


def test_logits_do_not_hang_on_pieces_or_neighbours(model):
    """Log-probabilities of a prompt and its answer agree to 1e-10 with those of one pass over all of it."""
    asked = row(model, prompts(1, 50, 3)[0] * 3, 5, logprobs=2, prompt_logprobs=True)
    events = finish(engine(model), [row(model, prompt) for prompt in prompts(3)] + [asked])
    own = [event for event in events if event.row is asked]
    told = [token for event in own for token in (*event.prompt, *event.tokens)]
    ids = torch.tensor([asked.ids])
    with torch.no_grad():
        logs = model(ids).logits_BTV[0].log_softmax(-1)
    expected = logs[:-1].gather(1, ids[0, 1:, None])[:, 0]
    assert [token.id for token in told] == asked.ids and told[0].logprob is None
    torch.testing.assert_close(torch.tensor([token.logprob for token in told[1:]], dtype=torch.float64), expected,
                               rtol=0, atol=1e-10)
    for place, token in enumerate(told[1:]):
        best = logs[place].topk(2)
        assert [number for number, _ in token.top] == best.indices.tolist()


def test_a_shared_beginning_is_read_once(model):
    found = engine(model)
    common = prompts(1, 50, 5)[0] * 2
    common = common[:37]
    first, second, other = row(model, [*common, 1]), row(model, [*common, 2, 3]), row(model, [7, *common[1:]])
    finish(found, [first])
    read = found.read_tokens
    finish(found, [second])
    assert second.cached == 36 and found.read_tokens - read == 39 - 36 + 11
    finish(found, [other])
    assert other.cached == 0  # another first id, another beginning
    again = row(model, first.prompt)
    finish(found, [again])
    assert again.cached == 36  # 38 ids are nine blocks and two more
    exact = row(model, first.prompt[:36])
    finish(found, [exact])
    assert exact.cached == 32  # the last id is read for what follows it
    for one in (first, second, other, again, exact):
        assert one.ids == alone(model, one.prompt)
    scored = row(model, first.prompt, prompt_logprobs=True, logprobs=0)
    events = finish(found, [scored])
    assert scored.cached == 0 and len(events[0].prompt) == 38


def test_rows_give_way_when_blocks_run_out(model):
    """Room for a row and a half: later rows are sent back, read again, and say what they would have said."""
    size = model_bytes = engine(model).position_bytes
    assert model_bytes == 2 * 2 * 16 * 8
    found = engine(model, cache_bytes=size * 4 * 24, context=60)
    assert found.pool.count == 24
    rows = [row(model, prompt[:20], 30) for prompt in prompts(6, 50, 8)]
    back = []
    sent = found.scheduler._sent_back
    found.scheduler._sent_back = lambda one: (back.append(one), sent(one))
    finish(found, rows)
    assert back
    assert [one.ids for one in rows] == [alone(model, one.prompt, 30) for one in rows]
    assert [one.cached for one in rows] == [0] * 6  # not what a row finds of itself when it comes back


def test_a_prompt_whose_reading_begins_anew_is_told_once(model):
    """A row that is sent back in the middle of its prompt tells of each of its ids what one that is alone tells."""
    size = engine(model).position_bytes
    found = engine(model, cache_bytes=size * 4 * 24, context=90, step_tokens=6)
    asked = prompts(1, 50, 3)[0] * 5
    late, single = (row(model, asked[:70], 3, logprobs=1, prompt_logprobs=True) for _ in range(2))
    back = []
    sent = found.scheduler._sent_back
    found.scheduler._sent_back = lambda one: (back.append(len(one.told)), sent(one))
    events = finish(found, [*(row(model, prompt[:8], 40) for prompt in prompts(2, 50, 8)), late])
    expected = finish(engine(model), [single])[0].prompt
    (told,) = [event.prompt for event in events if event.prompt]
    assert back[0] > 0
    assert [token.id for token in told] == [token.id for token in expected] == late.prompt
    assert [token.logprob for token in told[1:]] == pytest.approx([token.logprob for token in expected[1:]], abs=1e-10)


def test_a_step_reads_no_more_than_its_budget_and_answers_never_wait(model):
    found = engine(model, step_tokens=8, max_rows=4)
    short = [row(model, [number + 1], 30) for number in range(3)]
    for one in short:
        found.submit(one)
    found.step()
    found.submit(row(model, prompts(1, 50, 1)[0] * 2, 3))
    before = [len(one.ids) for one in short]
    for _ in range(6):
        read = found.read_tokens
        found.step()
        assert 3 < found.read_tokens - read <= 8
    assert [len(one.ids) for one in short] == [length + 6 for length in before]


def test_cancelled_rows_give_their_blocks_back(model):
    found = engine(model)
    draw = random.Random(2)
    rows = [row(model, prompt) for prompt in prompts(12, 40, 4)]
    for one in rows:
        found.submit(one)
        for _ in range(draw.randrange(3)):
            found.step()
        if draw.random() < 0.5:
            found.cancel(draw.choice(rows[: rows.index(one) + 1]))
        found.pool.check()
    finish(found)
    kept = [one for one in rows if len(one.said) == 12]
    assert 3 < len(kept) < 12
    assert all(one.ids == alone(model, one.prompt) for one in kept)
    assert all(one.finished for one in rows)


def test_an_answer_ends_at_ids_texts_and_lengths(model):
    prompt = prompts(1, 40, 6)[0]
    plain = row(model, prompt, 12)
    events = finish(engine(model), [plain])
    said = plain.said
    assert events[-1].finish == "length" and len(said) == 12
    stopped = row(model, prompt, 12, stop_ids=frozenset([said[5]]))
    events = finish(engine(model), [stopped])
    first = said.index(said[5])
    assert (stopped.said, events[-1].finish) == (said[:first], "stop")
    later = row(model, prompt, 12, stop_ids=frozenset([said[5]]), min_tokens=first + 1)
    finish(engine(model), [later])
    assert len(later.said) > first
    text = "".join(event.text for event in finish(engine(model), [row(model, prompt, 12)]))
    cut = row(model, prompt, 12, stop=(text[3:5],))
    events = finish(engine(model), [cut])
    assert "".join(event.text for event in events) == text[: text.index(text[3:5])]
    assert events[-1].finish == "stop" and len(cut.said) < 12


def test_draws_are_of_the_seed_whoever_else_is_there(model):
    prompt = prompts(1, 40, 7)[0]
    options = {"temperature": 0.9, "top_p": 0.9, "seed": 5}
    single = row(model, prompt, **options)
    finish(engine(model), [single])
    among = row(model, prompt, **options)
    other = row(model, prompt, **{**options, "seed": 6})
    finish(engine(model), [row(model, one, temperature=1.0) for one in prompts(3)] + [among, other])
    assert among.ids == single.ids != other.ids


def test_experts_are_told_as_the_network_routes(model):
    asked = row(model, prompts(1, 30, 2)[0], 5, experts=True)
    found = engine(model)
    asked_events = finish(found, [asked])
    tokens = [token for event in asked_events for token in event.tokens]
    with torch.no_grad():
        routings = model(torch.tensor([asked.ids])).routings
    for place, token in enumerate(tokens, start=len(asked.prompt) - 1):
        assert token.experts == tuple(tuple(routing.indices_TK[place].tolist()) for routing in routings)
    loads = [torch.zeros(3, dtype=torch.long) + routing.indices_TK[:-1].flatten().bincount(minlength=3)
             for routing in routings]
    assert found.loads.told()[""] == [load.tolist() for load in loads]


def test_loads_of_several_pieces_are_those_of_each():
    draw = torch.Generator().manual_seed(0)
    sizes = ((3, 2), (1, 2), (4, 1))
    pieces = [[None, torch.randint(-1, 5, size, generator=draw), torch.randint(-1, 3, size, generator=draw)]
              for size in sizes]
    pieces.append([None, None, torch.tensor([[9]])])
    together, each = Loads(3), Loads(3)
    together.add("prose", *pieces)
    for piece in pieces:
        each.add("prose", piece)
    assert together.told() == each.told() and together.told()[""] == together.told()["prose"]
    counts = [0] * 5
    for piece in pieces[:3]:
        for number in piece[1].flatten().tolist():
            counts[number] += number >= 0
    assert together.told()["prose"][:2] == [None, counts]


def test_loads_are_told_while_labels_come():
    loads = Loads(1)

    class Meanwhile:
        def tolist(self):
            loads.add("new", [torch.tensor([[0]])])
            return [3]

    loads._counts = {"": [None], "old": [Meanwhile()], "other": [None]}
    assert loads.told() == {"": [None], "old": [[3]], "other": [None]}
    assert loads.told()["new"] == [[2]]  # by both calls


def test_what_cannot_be_answered_is_refused(model):
    found = engine(model)
    with pytest.raises(MixwellError, match="at least one token"):
        found.submit(row(model, []))
    with pytest.raises(MixwellError, match="90 tokens of prompt and 12 of answer are more than the context of 96"):
        found.submit(row(model, [1] * 90))
    with pytest.raises(MixwellError, match="holds the id 9999"):
        found.submit(row(model, [9999]))
    with pytest.raises(MixwellError, match="give it more, or a shorter context"):
        Engine(model, Limits(cache_bytes=1000))
    with pytest.raises(ValueError, match="a token for each"):
        Engine(model, Limits(step_tokens=2, max_rows=4))
    bare = small_model()
    bare.files, bare._tokenizer = {}, None
    with pytest.raises(MixwellError, match="no tokenizer"):
        Engine(bare)
    with torch.no_grad():
        bare = small_model()
        bare.norm.weight.fill_(torch.nan)
    (event,) = finish(engine(bare), [row(bare, [1, 2])])
    assert event.finish == "error" and "not finite" in event.error
    assert not found.busy
