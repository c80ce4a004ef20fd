"""Bits per byte against a loop over single tokens, and where the load went."""

import math

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.data import write_shards
from mixwell.lm.documents import Document
from mixwell.lm.evaluate import evaluate
from mixwell.lm.splitting import Split
from mixwell.lm.tokenizer import Tokenizer

from .tiny import DENSE, tiny_data, tiny_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tokens") / "tokens")


def loop(model, data, domain, max_tokens, seq_len):
    """(nats, tokens, bytes) token by token; each sees the tokens from the last multiple of seq_len on."""
    stream = data.tokens(domain, "held")[:max_tokens].tolist()
    nats, size = 0.0, 0
    for place in range(1, len(stream)):
        start = (place - 1) // seq_len * seq_len
        if start == place - 1:
            logits_TV = model(torch.tensor([stream[start : start + seq_len]])).logits_BTV[0].double()
        nats -= torch.log_softmax(logits_TV[place - 1 - start], -1)[stream[place]].item()
        size += int(data.token_bytes_V[stream[place]])
    return nats, len(stream) - 1, size


@pytest.mark.parametrize(("max_tokens", "seq_len", "batch_size"), [(30, 7, 2), (29, 7, 3), (5, 16, 1), (10**6, 50, 8)])
def test_agrees_with_a_loop(data, max_tokens, seq_len, batch_size):
    model = tiny_model().eval()
    found = evaluate(model, data, max_tokens=max_tokens, seq_len=seq_len, batch_size=batch_size)
    for domain in data.domains:
        nats, tokens, size = loop(model, data, domain, max_tokens, seq_len)
        assert found.loss_nats[domain] == pytest.approx(nats / tokens, rel=1e-5)
        assert found.bits_per_byte[domain] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
        assert (found.tokens[domain], found.bytes[domain]) == (tokens, size)
    assert found.mean == pytest.approx(sum(found.bits_per_byte.values()) / 2)


def test_a_uniform_model_pays_the_logarithm_of_the_vocabulary(data):
    model = tiny_model()
    model.head.weight.data.zero_()
    found = evaluate(model, data, max_tokens=40)
    assert found.loss_nats == pytest.approx(dict.fromkeys(data.domains, math.log(270)))


def test_load_is_told_by_layer_and_domain(data):
    model = tiny_model()
    found = evaluate(model, data, max_tokens=25, seq_len=8, batch_size=2)
    assert list(found.load) == ["1"]  # layer 0 is dense
    for domain, shares in found.load["1"].items():
        stream = torch.tensor(data.tokens(domain, "held")[:25].astype("int64"))
        counts = sum(model(stream[None, s : s + 8]).routings[1].load_E() for s in range(0, 24, 8))
        assert shares == pytest.approx((counts / counts.sum()).tolist())
    dense = evaluate(tiny_model(layers=(DENSE,)), data, max_tokens=25)
    assert dense.load == {}


def test_the_train_side_can_be_weighed_and_the_domain_is_told_to_the_model(data):
    model, seen = tiny_model(), []
    loss = model.loss
    model.loss = lambda *a, **k: (seen.append((k["labels_B"].tolist(), k["step"])), loss(*a, **k))[1]
    found = evaluate(model, data, max_tokens=20, seq_len=10, split="train", step=7)
    assert found.tokens == {"sums": 19, "words": 19}
    assert seen == [([0], 7), ([0], 7), ([1], 7), ([1], 7)]


def test_bits_per_byte_do_not_depend_on_how_long_the_tokens_are(tmp_path):
    """A uniform guess over the bytes costs log2(257) bits a byte and a token for the end, whatever the domain."""
    tokenizer = Tokenizer.train([], 257)
    text = "naïve — 你好\n" * 3
    data = write_shards(tmp_path, {"d": Split((Document("a", text),), (Document("b", text),), "")}, tokenizer)
    model = tiny_model(vocab_size=257)
    model.head.weight.data.zero_()
    size = len(text.encode())
    assert evaluate(model, data).bits_per_byte["d"] == pytest.approx(math.log2(257) * size / (size - 1), rel=1e-5)


def test_too_few_tokens_are_refused(data):
    with pytest.raises(MixwellError, match="domain 'sums' has 1 tokens to evaluate on; expected at least 2"):
        evaluate(tiny_model(), data, max_tokens=1)
