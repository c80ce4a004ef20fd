"""The language bench's trunk: it knows more than a bigram table, and only the mixers on trial start anew."""

import math

import numpy as np
import pytest
import torch

from mixwell.claims import bench as benches
from mixwell.claims import trunk
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Untestable
from mixwell.claims.language import SWITCH


class Tokens:
    """Token data in memory, a byte a token."""

    vocab_size, domains = 3, ("a", "b")

    def __init__(self, train, held):
        self.streams = {"train": np.array(train, dtype=np.uint16), "held": np.array(held, dtype=np.uint16)}

    def tokens(self, domain, split):
        return self.streams[split]

    def bytes_of(self, domain, split, start, stop):
        return float(stop - start)


def test_bits_of_a_bigram_table_by_hand():
    data = Tokens(train=[0, 1, 0, 2, 0, 1], held=[0, 1, 0])
    # pairs of both domains: 01 four times, 02 twice, 10 twice, 20 twice; tokens behind another: 4 + 1, 4 + 1, 2 + 1
    unigram = [5 / 13, 5 / 13, 3 / 13]
    found = []
    for k in trunk.PSEUDO_COUNTS:
        one = (4 + k * unigram[1]) / (6 + k)
        zero = (2 + k * unigram[0]) / (2 + k)
        found.append(-(math.log2(one) + math.log2(zero)) / 2)
    assert trunk.bigram_bits(data, 100) == pytest.approx(min(found))


def test_a_trunk_that_a_table_equals_is_no_trunk():
    data = Tokens(train=[0, 1, 0, 2, 0, 1], held=[0, 1, 0])
    trunk.require_past_bigrams(0.1, data, 100)
    with pytest.raises(Untestable, match=r"the trunk stands at 3.000 bits per byte and a bigram table"):
        trunk.require_past_bigrams(3.0, data, 100)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A bench with a tenth of the text and of the training."""
    monkeypatch.setattr(benches, "DOMAIN_BYTES", 80_000)
    monkeypatch.setattr(trunk, "TOKENS", 4096)
    monkeypatch.setattr(trunk, "require_past_bigrams", lambda *_: None)
    return Bench(tmp_path)


def test_the_trunk_keeps_all_but_the_mixers_on_trial(bench):
    dense = bench.train(trunk.arch_of(bench.arch(), "channel_mixer"), trunk.SEED, tokens=4096).model.state_dict()
    one, other = (bench.started(bench.arch(SWITCH), seed, "channel_mixer") for seed in (0, 1))
    kept = [name for name in dense if ".channel_mixer." not in name]
    assert kept and all(torch.equal(one.state_dict()[name], dense[name].float()) for name in kept)
    experts = "layers.0.channel_mixer.gate_up_proj"
    assert not torch.equal(one.state_dict()[experts], other.state_dict()[experts])
    grouped = bench.started(bench.arch(num_kv_heads=2), 0, "sequence_mixer").state_dict()
    plain = bench.train(trunk.arch_of(bench.arch(), "sequence_mixer"), trunk.SEED, tokens=4096).model.state_dict()
    assert torch.equal(grouped[experts], plain[experts].float())


def test_mixers_on_trial_start_at_one_size(bench):
    for mixer in (SWITCH, {"router": {"method": "cosine", "k": 2}}, {"method": "experts.layers.swiglu"}):
        model = bench.started(bench.arch(mixer), 0, "channel_mixer")
        tokens, labels = trunk.windows(bench.data, "train", 16, 64)
        sizes, spreads = [], []

        def keep(mixer, given, mixed, sizes=sizes, spreads=spreads):
            sizes.append(float(mixed.y_TD.square().mean().sqrt()))
            if mixed.routing is not None:
                spreads.append(float(mixed.routing.logits_TE.std(1, correction=0).square().mean().sqrt()))

        for layer in model.layers:
            layer.channel_mixer.register_forward_hook(keep)
        with torch.no_grad():
            model(tokens, labels_B=labels)
        assert sizes == pytest.approx([trunk.SIZE] * 2, rel=0.05)
        assert spreads == pytest.approx([1.0] * len(spreads), rel=0.05)


def test_windows_are_labelled_by_domain():
    data = Tokens(train=range(3), held=[0, 1, 2, 0, 1])
    rows, labels = trunk.windows(data, "held", 8, 2)
    assert rows.tolist() == [[0, 1], [2, 0]] * 2 and labels.tolist() == [0, 0, 1, 1]
    assert trunk.arch_of({"num_heads": 8, "num_kv_heads": 2, "dim": 64}, "sequence_mixer") == {
        "num_heads": 4, "dim": 64}
