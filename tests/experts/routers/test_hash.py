"""Hash routing: the tables against plain loops, and what they promise."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context
from mixwell.experts.routers.hash import Config, Hash, make_table


def greedy(frequencies, buckets):
    """Most frequent first, into the lightest bucket, in plain Python."""
    weights, items, out = [0.0] * buckets, [0] * buckets, [0] * len(frequencies)
    for i in sorted(range(len(frequencies)), key=lambda i: (-frequencies[i], i)):
        out[i] = min(range(buckets), key=lambda b: (weights[b], items[b], b))
        weights[out[i]] += frequencies[i]
        items[out[i]] += 1
    return out


def zipf(n):
    return tuple(1 / (i + 1) for i in range(n))


def routed(router, ids, **context):
    return router(torch.zeros(len(ids), 6), Context(token_ids_T=torch.tensor(ids), **context))


def test_balanced_table_agrees_with_a_plain_loop():
    table = make_table(Config(vocab_size=50, frequencies=zipf(50)), 4)
    assert table.tolist() == greedy(zipf(50), 4)
    loads = torch.zeros(4, dtype=torch.float64).index_add(0, table, torch.tensor(zipf(50), dtype=torch.float64))
    assert loads.max() - loads.min() <= min(zipf(50)) + 1e-12  # greedy ends within its last item


def test_modulo_and_random_tables(generator):
    assert make_table(Config(vocab_size=7, table="modulo"), 3).tolist() == [0, 1, 2, 0, 1, 2, 0]
    config = Config(vocab_size=4000, table="random")
    first = make_table(config, 4, generator)
    assert not torch.equal(first, make_table(config, 4, generator))
    assert torch.bincount(first, minlength=4).float().sub(1000).abs().max() < 150


def test_an_id_always_goes_to_one_expert_whole(generator):
    router = Hash(6, 4, Config(vocab_size=9, table="random"), generator)
    routing = routed(router, [3, 8, 3, 3])
    assert routing.indices_TK[0] == routing.indices_TK[2] == routing.indices_TK[3] == router.table_V[3]
    assert routing.weights_TK.tolist() == [[1.0]] * 4 and routing.logits_TE is None
    assert routing.scores_TE.argmax(-1).tolist() == routing.indices_TK[:, 0].tolist()
    assert not list(router.parameters())


def test_one_expert_takes_all():
    assert routed(Hash(6, 1, Config(vocab_size=5, table="modulo")), [0, 4]).load_E().tolist() == [2]


def test_learns_frequencies_and_keeps_them_in_its_state():
    router, tokens = Hash(6, 3, Config(vocab_size=6)), torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 3, 3])
    with pytest.raises(MixwellError, match="fit_tokens"):
        routed(router, [1])
    router.fit_tokens(tokens)
    assert router.table_V.tolist() == greedy([4, 2, 1, 3, 0, 0], 3)
    copy = Hash(6, 3, Config(vocab_size=6))
    copy.load_state_dict(router.state_dict())
    assert not copy.needs_tokens and torch.equal(copy.table_V, router.table_V)
    fixed = Hash(6, 3, Config(vocab_size=6, table="modulo"))
    fixed.fit_tokens(tokens)
    assert fixed.table_V.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("options, message", [
    ({"vocab_size": 0}, "at least 1"),
    ({"vocab_size": 3, "frequencies": (1.0,)}, "one for each"),
    ({"vocab_size": 1, "frequencies": (1.0,), "table": "modulo"}, "does not read them"),
])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_refuses_ids_it_cannot_know():
    router = Hash(6, 3, Config(vocab_size=6, table="modulo"))
    with pytest.raises(MixwellError, match="set vocab_size"):
        routed(router, [1, 6])
    with pytest.raises(MixwellError, match="got none for 2 tokens"):
        router(torch.zeros(2, 6), Context())


def test_a_token_has_one_expert(generator):
    assert Hash(6, 4, Config(vocab_size=10, table="modulo"), generator).experts_per_token == 1
