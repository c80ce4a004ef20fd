"""Rows of which a part stays: what the engine says is what a model says whose caches are asked id by id."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.cache import Cache
from mixwell.serve.engine import Limits, _keeping
from mixwell.serve.keeping.rules import RuledCache
from mixwell.serve.kept import POLICIES, keep_of, kept_caches
from tests.serve.conftest import LATENT, engine, finish, row, small_model
from tests.serve.test_engine import alone, prompts


def by_ids(model, keep, prompt, most=12):
    """The likeliest answer where the rule itself stands behind each layer: the first ids in one pass (the whole prompt
    where the rule chooses once), then one at a time."""
    first = len(prompt) if keep.queries else min(len(prompt), keep.budget)
    cache = Cache([RuledCache(keep.rule()) for _ in model.layers])
    ids = list(prompt)
    with torch.no_grad():
        logits = model.next_logits(torch.tensor([ids[:first]]), cache)
        for number in ids[first:]:
            logits = model.next_logits(torch.tensor([[number]]), cache)
        for _ in range(most):
            ids.append(int(logits[0].argmax()))
            logits = model.next_logits(torch.tensor([ids[-1:]]), cache)
    return ids


@pytest.mark.parametrize("policy", POLICIES)
def test_answers_are_those_of_the_rule_whatever_the_pieces_and_neighbours(model, policy):
    keep = keep_of(f"{policy}:10")
    asked = prompts(4, 50, 11)
    found = engine(model, keep=keep.name)
    rows = [row(model, prompt) for prompt in asked]
    finish(found, rows)
    expected = [by_ids(model, keep, prompt) for prompt in asked]
    assert [one.ids for one in rows] == expected
    whole = [alone(model, prompt) for prompt in asked]
    assert sum(ids != own for ids, own in zip(expected, whole)) > 1  # what went is missed
    assert not found.rows.caches
    long = [one for one in rows if len(one.prompt) > 12]
    gone = [len(one.prompt) - 10 if keep.queries else len(one.prompt) + 11 - 10 for one in long]
    assert [one.dropped for one in long] == gone
    assert found.facts()["dropped_tokens"] == sum(one.dropped for one in rows)
    with kept_caches(model, keep):
        assert [alone(model, prompt) for prompt in asked[:2]] == expected[:2]
    assert alone(model, asked[0]) == whole[0]


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_lost_where_all_fits(model, policy):
    rows = [row(model, prompt) for prompt in prompts(2, 30)]
    finish(engine(model, keep=f"{policy}:64"), rows)
    assert [one.ids for one in rows] == [alone(model, one.prompt) for one in rows]
    assert [one.dropped for one in rows] == [0] * 2


def test_memory_is_bounded_by_what_stays(model):
    """Rows of 90 positions in blocks for 11 each, all four at once; the cache alone would hold half a row."""
    size = engine(model).position_bytes
    found = engine(model, keep="heavy_hitters:10", cache_bytes=size * 4 * 12)
    assert found.pool.count == 12
    rows = [row(model, prompt, 20) for prompt in ([7, 9] * 35, [8] * 70, [5, 6, 4] * 20, [3] * 60)]
    for one in rows:
        found.submit(one)
    most = 0
    while found.busy:
        found.step()
        found.pool.check()
        most = max(most, len(found.scheduler.running))
        held = [cache.length for caches in found.rows.caches.values() for cache in caches]
        assert max(held, default=0) <= 10
    assert most == 4 and found.pool.used == 0
    assert all(len(one.said) == 20 for one in rows)


def test_what_is_chosen_once_gives_its_blocks_back_and_rows_may_be_sent_back(model):
    size = engine(model).position_bytes
    found = engine(model, keep="last_queries:8", cache_bytes=size * 4 * 23, context=90)
    rows = [row(model, prompt[:40], 30) for prompt in prompts(4, 50, 8)]
    back = []
    sent = found.scheduler._sent_back
    found.scheduler._sent_back = lambda one: (back.append(one), sent(one))
    for one in rows:
        found.submit(one)
    while found.busy:
        found.step()
        found.pool.check()
        for one in found.scheduler.running:
            if one.computed >= len(one.prompt):
                assert len(one.blocks) <= -(-(len(one.ids) - one.dropped) // 4)
        assert len(found.rows.caches) <= len(found.scheduler.running)
    assert back and found.pool.used == 0
    keep = found.keep
    assert [one.ids for one in rows] == [by_ids(model, keep, one.prompt, 30) for one in rows]


def test_what_cannot_be_kept_is_refused(model):
    for name, said in (("recent:9", "window, heavy_hitters, last_queries"), ("window", "POLICY:TOKENS"),
                       ("window:7", "8 tokens or more")):
        with pytest.raises(MixwellError, match=said):
            engine(model, keep=name)
    with pytest.raises(MixwellError, match="drafts came"):
        engine(model, keep="window:9", draft="lookup")
    with pytest.raises(MixwellError, match="cache_bits came"):
        engine(model, keep="window:9", cache_bits=8)
    with pytest.raises(MixwellError, match="mixes by LatentAttention"):
        engine(small_model(LATENT), keep="window:9")
    with pytest.raises(MixwellError, match="leave keep out"):
        _keeping(Limits(keep="window:9"), None, packed=False)
