"""Documents kept apart in training, against each document read alone."""

import itertools

import numpy as np
import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.data import write_shards
from mixwell.lm.documents import Document
from mixwell.lm.network import IGNORED
from mixwell.lm.splitting import Split
from mixwell.lm.training.config import TrainConfig
from mixwell.lm.training.documents import NOBODYS, count_cut, taken_apart, windows_of
from mixwell.lm.training.loop import train
from mixwell.lm.training.sampler import Sampler
from mixwell.run.stages.train import cut
from tests.lm.templates import byte_level
from tests.lm.test_masks import talk
from tests.lm.tiny import tiny_model

SEQ_LEN = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Texts and conversations of many lengths; the latter hold their end-of-text token's kind inside, too."""
    texts = [Document(str(i), "word " * (1 + 3 * i % 17)) for i in range(14)]
    talks = [talk(i, "hello " * (1 + i % 9)) for i in range(9)]
    splits = {name: Split(tuple(own[1:]), tuple(own[:1]), "") for name, own in (("texts", texts), ("talk", talks))}
    return write_shards(tmp_path_factory.mktemp("apart") / "tokens", splits, byte_level("chatml"))


def streams(data, domain):
    """(ids, whether each counts) of the documents one by one."""
    ids, mask = data.tokens(domain, "train"), data.mask(domain, "train")
    counts = np.ones(len(ids), bool) if mask is None else mask.astype(bool)
    edges = [0, *data.ends(domain, "train").tolist()]
    return [(ids[a:b].tolist(), counts[a:b].tolist()) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("domain, count", [("texts", 13), ("talk", 8)])
def test_ends_are_those_of_documents(data, domain, count):
    found = streams(data, domain)
    assert len(found) == data.documents(domain, "train") == count
    assert sum(len(ids) for ids, _ in found) == data.count(domain, "train")
    assert all(ids[-1] == data.eos_id for ids, _ in found)


def test_windows_hold_whole_documents_and_cut_those_that_are_too_long():
    ends = np.cumsum([3, 4, 2, 12, 5, 1, 1])
    assert windows_of(ends, 5).tolist() == [[0, 3], [3, 9], [9, 15], [14, 20], [19, 21], [21, 27], [27, 28]][:6]
    assert count_cut(ends, 5) == 1 and count_cut(ends, 11) == 0
    assert windows_of(np.array([1, 2]), 5).tolist() == [[0, 2]]
    assert windows_of(np.array([1]), 5).tolist() == []


@pytest.mark.parametrize("domain", ["texts", "talk"])
def test_an_epoch_reads_every_document_once(data, domain):
    sampler = Sampler(data, {domain: 1.0}, 1, SEQ_LEN, seed=0, apart=True)
    windows = len(sampler._spans[domain])
    seen = []
    for _ in range(windows):
        batch = sampler.batch()
        for number in batch.documents_BT.unique().tolist():
            if number != NOBODYS:
                there = batch.documents_BT == number
                seen.append((number, batch.tokens_BT[there].tolist(), batch.targets_BT[there].tolist()))
    known = streams(data, domain)
    whole = [number for number, (ids, _) in enumerate(known) if len(ids) <= SEQ_LEN + 1]
    assert len(whole) > 0 and {number for number, _, _ in seen} == set(range(len(known)))
    for number, tokens, targets in seen:
        ids, counts = known[number]
        if number in whole:
            assert tokens in (ids[:-1], ids)  # the last token is read where another document follows in the window
            expected = [one if counted else IGNORED for one, counted in zip(ids[1:], counts[1:])]
            assert targets[: len(ids) - 1] == expected and targets[len(ids) - 1 :] in ([], [IGNORED])


def test_the_loss_is_that_of_each_document_alone(data):
    sampler = Sampler(data, None, 6, SEQ_LEN, seed=0, apart=True)
    batch = sampler.batch()
    model = tiny_model(data.vocab_size).cast(torch.float64)
    parts = list(taken_apart(batch.tokens_BT, batch.targets_BT, batch.domains_B, batch.documents_BT))
    assert all(mask_BT.float().mean() >= 0.8 for *_, mask_BT in parts)  # padding stays small
    nats, counted = 0.0, 0
    for tokens_BT, targets_BT, domains_B, mask_BT in parts:
        assert bool((targets_BT[~mask_BT] == IGNORED).all()) and len(domains_B) == len(tokens_BT)
        count = int((targets_BT != IGNORED).sum())
        nats += float(model.loss(tokens_BT, targets_BT, mask_BT=mask_BT).nats) * count
        counted += count
    alone, number = 0.0, 0
    for row in range(6):
        for document in batch.documents_BT[row].unique().tolist():
            there = batch.documents_BT[row] == document
            targets_T = batch.targets_BT[row][there]
            counts_T = targets_T != IGNORED
            if document != NOBODYS and bool(counts_T.any()):
                log_BTV = model(batch.tokens_BT[row][there][None]).logits_BTV.log_softmax(-1)
                alone -= float(log_BTV[0, counts_T, targets_T[counts_T]].sum())
                number += int(counts_T.sum())
    assert number == counted and nats == pytest.approx(alone, rel=1e-9)


def test_a_training_keeps_documents_apart_and_tells_of_those_it_cuts(data, tmp_path):
    config = TrainConfig(steps=2, batch_size=4, seq_len=SEQ_LEN, documents="apart", accumulate=2, dtype="fp32", lr=1e-2)
    model = tiny_model(data.vocab_size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = train(model, data, config, tmp_path / "apart")
    assert done.metrics[-1]["loss_nats"] > 0
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    lengths = {name: [len(ids) for ids, _ in streams(data, name)] for name in data.domains}
    expected = [f"{name}: {sum(one > SEQ_LEN + 1 for one in own)} of {len(own)} documents"
                for name, own in lengths.items() if max(own) > SEQ_LEN + 1]
    told = cut(data, config, {"texts": 1, "talk": 1})
    assert [line.partition(" are longer")[0] for line in told] == expected and expected
    assert cut(data, config, {"texts": 0}) == [] and cut(data, TrainConfig(steps=1), {"texts": 1}) == []


def test_what_cannot_be_kept_apart_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="documents is x; expected joined or apart"):
        TrainConfig(steps=1, documents="x")
    empty = Split((Document("a", ""),), (Document("b", "x"),), "")
    bare = write_shards(tmp_path / "bare", {"texts": empty}, byte_level("chatml"))
    with pytest.raises(MixwellError, match="'texts' holds no document with something to learn from"):
        Sampler(bare, None, 1, SEQ_LEN, seed=0, apart=True)
