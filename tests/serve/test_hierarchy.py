"""Two levels of drafts leave the model's law as it is; the released inner step would not."""

import pytest
import torch

from mixwell.core.rng import generator
from mixwell.serve.hierarchy import Config, example, hierarchy, inner, kept_places
from mixwell.serve.speculation import agreeing, residual, verified

V = 4


def tables(seed, sharp=1.5):
    """Three laws of a first-order chain, of a whole, a small and a tiny model."""
    draws = generator(seed)
    logits = sharp * torch.randn(3, V, V, generator=draws, dtype=torch.float64)
    return [lambda ids, table=table: table[ids[-1]] for table in logits.softmax(-1)]


def shares(pairs):
    counts = torch.zeros(V, V, dtype=torch.float64)
    for first, second in pairs:
        counts[first, second] += 1
    return counts / counts.sum()


def expected(law):
    """Probability of each pair of first tokens after token 0."""
    first = law([0])
    return torch.stack([first[i] * law([0, i]) for i in range(V)])


def pairs_of(step, count):
    """The first two tokens of many runs; a step may give one token alone."""
    found = []
    for _ in range(count):
        ids = [0]
        while len(ids) < 3:
            ids += step(ids)
        found.append((ids[1], ids[2]))
    return found


def distance(found, law):
    return float((shares(found) - expected(law)).abs().sum() / 2)


def test_a_turned_down_draft_is_replaced_so_that_the_law_stays():
    """For every token: q min(1, p / q) + (chance of none) residual = p, exactly."""
    whole, small, _ = tables(1)
    wanted, drafted = whole([0]), small([0])
    accepted = torch.minimum(wanted, drafted)
    torch.testing.assert_close(accepted + (1 - accepted.sum()) * residual(wanted, drafted), wanted)
    torch.testing.assert_close(residual(wanted, wanted), wanted)
    draws = generator(2)
    for _ in range(20):
        assert verified(wanted, wanted, 1, draws) == (1, True)


def test_the_model_draws_as_if_alone_and_with_the_released_inner_step_it_would_not():
    whole, small, tiny = tables(3)
    draws = generator(4)
    config = Config(drafts=3)
    found = pairs_of(lambda ids: hierarchy(ids, whole, small, tiny, config, draws).tokens, 2500)
    assert distance(found, whole) < 0.04
    inside = pairs_of(lambda ids: inner(ids, small, tiny, 1, draws)[0], 2500)
    assert distance(inside, small) < 0.04
    wanted, drafted = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
    accepted = torch.minimum(wanted, drafted)
    released = accepted + (1 - accepted.sum()) * wanted  # what is turned down drawn from q itself
    assert (released - wanted).abs().sum() / 2 > 0.06


def test_passes_are_counted_and_equal_models_waste_none():
    whole, _, _ = tables(5)
    draws = generator(6)
    turn = hierarchy([0], whole, whole, whole, Config(drafts=6), draws)
    assert len(turn.tokens) == 7 and (turn.whole, turn.small, turn.tiny) == (1, 3, 3)
    values = example(generator(0))
    assert 1 <= len(hierarchy(**values).tokens) <= 5


def test_the_small_cache_keeps_the_first_chunk_and_those_that_the_query_looks_for():
    keys = torch.zeros(20, 2, dtype=torch.float64)
    keys[8:12, 0], keys[12:16, 0], keys[16:, 1] = 1.0, 0.5, 9.0
    query = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert kept_places(query, keys, Config(chunk=4, budget=9)).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert kept_places(-query, keys, Config(chunk=4, budget=8)).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert kept_places(query, keys[:18], Config(chunk=4, budget=400)).tolist() == list(range(18))
    with pytest.raises(ValueError, match="a chunk of 8 positions"):
        Config(budget=7)


def test_drafts_agree_up_to_the_first_that_is_wrong():
    for drafts, told, count in (([1, 2, 3], [1, 2, 3, 4], 3), ([1, 2, 3], [1, 9, 3], 1), ([5], [1], 0), ([], [1], 0)):
        assert agreeing(drafts, told) == count
