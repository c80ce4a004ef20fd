"""The sampler: planned shares, every window once an epoch, the same batches after a resume and on many workers."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.training.sampler import Sampler

SIZES = {"a": 101, "b": 57, "c": 33}


class Streams:
    """Token data of three domains whose ids tell where they stand: domain * 1000 + place."""

    domains = tuple(SIZES)

    def count(self, domain, split):
        assert split == "train"
        return SIZES[domain]

    def tokens(self, domain, split):
        return np.arange(self.count(domain, split), dtype=np.uint16) + 1000 * self.domains.index(domain)

    def labels(self, domain, split, start, stop):
        return self.tokens(domain, split)[start:stop].astype(np.int64)

    def mask(self, domain, split):
        return None


DATA = Streams()


def sampler(weights=None, batch_size=6, seq_len=4, seed=1, **options):
    return Sampler(DATA, weights, batch_size, seq_len, seed, **options)  # type: ignore[arg-type]


def test_a_batch_is_windows_with_their_targets_and_domains():
    batch = sampler().batch()
    assert batch.tokens_BT.shape == batch.targets_BT.shape == (6, 4)
    assert batch.tokens_BT.dtype == batch.targets_BT.dtype == batch.domains_B.dtype == torch.int64
    assert torch.equal(batch.tokens_BT + 1, batch.targets_BT)  # the streams count up by one
    assert torch.equal(batch.tokens_BT[:, 0] // 1000, batch.domains_B)


def test_every_window_once_an_epoch_and_in_another_order_the_next():
    one = sampler({"b": 1.0}, batch_size=14)  # 57 tokens make 14 windows of 4
    first, second = one.batch(), one.batch()
    for batch in (first, second):
        assert sorted(batch.targets_BT.flatten().tolist()) == list(range(1001, 1057))
    assert not torch.equal(first.tokens_BT, second.tokens_BT)
    assert one.epochs() == {"a": 0.0, "b": 2.0, "c": 0.0}
    assert not torch.equal(first.tokens_BT, sampler({"b": 1.0}, batch_size=14, seed=2).batch().tokens_BT)


@pytest.mark.parametrize("weights", [dict.fromkeys("abc", 1), {"a": 0.7, "b": 0.29, "c": 0.01}, {"a": 5, "c": 2}, None])
def test_shares_stay_within_a_window_of_the_plan_at_all_times(weights):
    one = sampler(weights, batch_size=1)
    planned = {d: (weights or SIZES).get(d, 0) / sum((weights or SIZES).values()) for d in SIZES}
    for drawn in range(1, 200):
        one.batch()
        for domain, tokens in one.ledger().items():
            assert abs(tokens / 4 - planned[domain] * drawn) <= 1.0 + 1e-9
    assert sum(one.ledger().values()) == 199 * 4


def test_the_same_seed_gives_the_same_batches_and_resuming_goes_on_exactly():
    whole, cut = sampler(), sampler()
    expected = [whole.batch() for _ in range(40)]
    for batch in expected[:23]:
        assert torch.equal(cut.batch().tokens_BT, batch.tokens_BT)
    resumed = sampler()
    resumed.load_state_dict(json.loads(json.dumps(cut.state_dict())))
    for batch in expected[23:]:
        found = resumed.batch()
        assert torch.equal(found.tokens_BT, batch.tokens_BT) and torch.equal(found.domains_B, batch.domains_B)
    assert resumed.ledger() == whole.ledger()
    assert len(json.dumps(whole.state_dict())) < 300


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_together_read_what_one_reads(world_size):
    one, many = sampler(), [sampler(rank=r, world_size=world_size) for r in range(world_size)]
    for _ in range(9):
        whole, parts = one.batch(), [s.batch() for s in many]
        assert {len(p.tokens_BT) for p in parts} == {6 // world_size}
        rows = Counter(tuple(row) for p in parts for row in p.tokens_BT.tolist())
        assert rows == Counter(tuple(row) for row in whole.tokens_BT.tolist())
    assert all(s.state_dict() == one.state_dict() for s in many)


@pytest.mark.parametrize(("options", "message"), [
    ({"weights": {"x": 1}}, "no domain 'x'. Known domains: a, b, c"),
    ({"weights": {"a": -1}}, "weights.a: expected a number of 0 or more, got -1"),
    ({"weights": {"a": float("nan")}}, "got nan"),
    ({"weights": {"a": 0}}, "all are 0"),
    ({"seq_len": 40}, "domain 'c' has 33 tokens to train on; a window of seq_len 40 reads 41"),
    ({"seq_len": 0}, "batch_size 6 and seq_len 0: expected at least 1"),
    ({"rank": 0, "world_size": 4}, "rank 0 of 4 with batch_size 6"),
    ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
])
def test_refusals(options, message):
    with pytest.raises(MixwellError, match=message):
        sampler(**options)


def test_a_domain_too_short_may_be_left_out_by_its_weight():
    assert sampler({"a": 1, "c": 0}, seq_len=40).batch().tokens_BT.max() < 1000


@pytest.mark.parametrize("other", [{"seed": 9}, {"seq_len": 5}, {"weights": {"a": 1}}])
def test_a_state_of_other_settings_is_refused(other):
    with pytest.raises(MixwellError, match=f"made with {next(iter(other))} .*resume with the same settings"):
        sampler(**other).load_state_dict(sampler().state_dict())
