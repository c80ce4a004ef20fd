"""The word table against a plain loop, and its promises: longest word, even buckets, causal."""

from collections import Counter

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.routers.word_table import Config, WordTable


def longest_words(row, words, length):
    """The longest known sequence that ends at each place, in plain Python."""
    out = []
    for t in range(len(row)):
        for n in range(length, 0, -1):
            word = tuple(row[max(0, t - n + 1) : t + 1])
            if len(word) == n and (n == 1 or word in words):
                out.append(word)
                break
    return out


def fitted(generator, length=3, words=6):
    stream = torch.tensor([1, 2, 3, 4] * 6 + [5, 6] * 9 + torch.randint(8, (40,), generator=generator).tolist())
    router = WordTable(6, 3, Config(vocab_size=8, num_words=words, max_length=length))
    router.fit_tokens(stream)
    return router, stream


def routed(router, rows, **context):
    ids = torch.tensor(rows)
    shape = {"batch_shape": tuple(ids.shape), **context}
    return router(torch.zeros(ids.numel(), 6), Context(token_ids_T=ids.reshape(-1), **shape)).indices_TK.view(ids.shape)


@pytest.mark.parametrize("length", [2, 3, 4])
def test_agrees_with_a_plain_loop(generator, length):
    router, stream = fitted(generator, length)
    known = {}  # word -> expert, read back from the table
    for key, expert in zip(router.keys_N.tolist(), router.table_N.tolist()):
        word = []
        while 0 < key < 2**63 - 1:
            key, digit = divmod(key, 9)
            word.insert(0, digit - 1)
        known[tuple(word)] = expert
    known.pop((), None)
    many = {word for word in known if len(word) > 1}
    text = stream.tolist()
    counts = Counter(tuple(text[i : i + n]) for n in range(2, length + 1) for i in range(len(text) - n + 1))
    assert len(many) == 6 and min(counts[w] for w in many) >= sorted(counts.values())[-6]
    rows = [*torch.randint(8, (4, 9), generator=generator).tolist(), [1, 2, 3, 4, 5, 6, 5, 6, 1]]
    expected = [[known[word] for word in longest_words(row, many, length)] for row in rows]
    assert routed(router, rows).tolist() == expected


def test_buckets_are_even_and_routing_is_whole(generator):
    router, stream = fitted(generator)
    load = torch.bincount(routed(router, [stream.tolist()]).reshape(-1), minlength=3)
    assert load.max() - load.min() <= 3
    routing = router(torch.zeros(8, 6), Context(token_ids_T=stream[:8], batch_shape=(1, 8)))
    assert (routing.weights_TK == 1).all() and routing.scores_TE.sum() == 8 and not list(router.parameters())


def test_later_tokens_and_other_rows_change_nothing(generator):
    router, _ = fitted(generator)
    row = [1, 2, 3, 4, 5, 6, 1, 2]
    whole = routed(router, [row])
    assert torch.equal(routed(router, [[*row[:5], 7, 7, 7]])[:, :5], whole[:, :5])
    assert torch.equal(routed(router, [[3, 4] * 4, row])[1:], whole)


def test_without_words_it_is_a_balanced_table_of_ids():
    router = WordTable(6, 2, Config(vocab_size=4, frequencies=(5.0, 3.0, 3.0, 1.0)))
    assert router.table_N.tolist() == [0, 1, 1, 0]
    learnt = WordTable(6, 2, Config(vocab_size=4))
    assert learnt.needs_tokens
    learnt.fit_tokens(torch.tensor([0] * 5 + [1] * 3 + [2] * 3 + [3]))
    assert torch.equal(learnt.table_N, router.table_N)
    context = Context(token_ids_T=torch.tensor([3, 1]), positions_T=torch.tensor([7, 8]))
    assert learnt(torch.zeros(2, 6), context).indices_TK.tolist() == [[0], [1]]


def test_fewer_words_in_the_text_than_asked_for_and_a_state_that_travels():
    router = WordTable(6, 2, Config(vocab_size=4, num_words=50))
    router.fit_tokens(torch.tensor([0, 1, 0, 1, 0, 1, 2]))
    copy = WordTable(6, 2, Config(vocab_size=4, num_words=50))
    copy.load_state_dict(router.state_dict())
    assert torch.equal(routed(copy, [[0, 1, 2, 3]]), routed(router, [[0, 1, 2, 3]]))
    assert (router.keys_N < 2**63 - 1).sum() == 4 + 4  # 01, 10, 010, 101 occur more than once


@pytest.mark.parametrize("options, message", [
    ({"vocab_size": 0}, "at least 1"), ({"vocab_size": 4, "max_length": 1}, "at least 2"),
    ({"vocab_size": 50000, "max_length": 5}, "63 bits"),
    ({"vocab_size": 2, "frequencies": (1.0, 1.0), "num_words": 1}, "no words"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_a_part_with_the_ids_before_it_equals_the_whole_and_padding_begins_no_word(generator):
    router, _ = fitted(generator)
    row = [1, 2, 3, 4, 5, 6, 1, 2]
    whole = routed(router, [row])
    for cut in range(1, len(row)):
        places = torch.arange(cut, len(row))
        part = routed(router, [row[cut:]], positions_T=places, earlier_ids_BS=torch.tensor([row[:cut]]))
        assert torch.equal(part, whole[:, cut:])
    for padding in range(1, 8):
        mask = torch.tensor([False] * 2 + [True] * len(row))
        assert torch.equal(routed(router, [[padding, padding, *row]], mask_T=mask)[:, 2:], whole)


def test_refuses_what_it_cannot_read(generator):
    with pytest.raises(MixwellError, match="fit_tokens"):
        routed(WordTable(6, 2, Config(vocab_size=4)), [[1]])
    router, _ = fitted(generator)
    with pytest.raises(MixwellError, match="batch_shape"):
        routed(router, [[1, 2]], batch_shape=None)
    with pytest.raises(MixwellError, match="give the ids before it"):
        routed(router, [[1]], positions_T=torch.tensor([5]))


def test_a_token_has_one_expert():
    assert WordTable(6, 2, Config(vocab_size=4)).experts_per_token == 1
