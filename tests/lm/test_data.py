"""Text by domain, laid down as tokens."""

import json

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.lm.data import TokenData, write_shards
from mixwell.lm.documents import Document
from mixwell.lm.splitting import Split, split_documents
from mixwell.lm.tokenizer import Tokenizer

TEXTS = [f"Text number {i}: naïve — 你好.\nline two of {i}\n" for i in range(40)]


def documents(texts):
    return [Document(f"{i:02d}.txt", text) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 300)


def test_shards_hold_the_very_text(tmp_path, tokenizer):
    splits = {"fr çais": split_documents(documents(TEXTS)), "b": split_documents(documents(["one\ntwo\nthree\n"]))}
    data = write_shards(tmp_path / "tokens", splits, tokenizer)
    assert data.domains == ("fr çais", "b")
    assert (data.vocab_size, data.eos_id, data.tokenizer_digest) == (300, 0, tokenizer.digest)
    for domain, split in splits.items():
        for side, docs in (("train", split.train), ("held", split.held)):
            stream = data.tokens(domain, side)
            assert stream.dtype == np.uint16
            assert tokenizer.decode(stream) == "".join(d.text + "<|endoftext|>" for d in docs)
            assert data.bytes(domain, side) == sum(len(d.text.encode()) for d in docs)
            assert data.bytes_of(domain, side, 0, len(stream)) == data.bytes(domain, side)
            assert data.documents(domain, side) == len(docs)
            assert data.count(domain, side) == len(stream)
            with pytest.raises(ValueError, match="read-only"):
                stream[0] = 1
    first = splits["b"].train[0].text.encode()
    sizes = [data.bytes_of("b", "train", i, i + 1) for i in range(data.count("b", "train"))]
    assert sizes == [len(tokenizer.decode([t]).encode()) for t in data.tokens("b", "train")[:-1]] + [0]
    assert sum(sizes) == len(first)
    assert data.note("b") == splits["b"].note


def test_byte_counts_are_scaled_where_token_lengths_miss_the_text(tmp_path, tokenizer):
    data = write_shards(tmp_path, {"a": split_documents(documents(TEXTS))}, tokenizer)
    index = json.loads((tmp_path / "index.json").read_text())
    index["domains"]["a"]["train"]["bytes"] *= 2
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert TokenData.open(tmp_path).bytes_of("a", "train", 3, 9) == 2 * data.bytes_of("a", "train", 3, 9)


def test_large_vocabularies_take_four_bytes(tmp_path, tokenizer):
    class Large:  # a tokenizer with more ids than two bytes tell apart
        vocab_size, eos_id, digest = 70_000, 69_999, "x"
        token_bytes_V = np.ones(70_000, np.uint32)
        around: tuple = (), ()
        round_trips = True

        def encode_batch(self, texts):
            return [[65_536 + len(t)] for t in texts]

    split = Split((Document("a", "abc"),), (Document("b", "de"),), "")
    data = write_shards(tmp_path / "t", {"d": split}, Large())  # type: ignore[arg-type]
    assert data.tokens("d", "train").tolist() == [65_539, 69_999]
    assert data.tokens("d", "train").dtype == np.uint32


def test_writing_again_replaces_and_damage_is_named(tmp_path, tokenizer):
    folder = tmp_path / "tokens"
    write_shards(folder, {"a": split_documents(documents(TEXTS)), "b": split_documents(documents(TEXTS))}, tokenizer)
    data = write_shards(folder, {"a": split_documents(documents(TEXTS))}, tokenizer)
    assert data.domains == TokenData.open(folder).domains == ("a",)
    assert [p.name for p in tmp_path.iterdir()] == ["tokens"]
    with pytest.raises(MixwellError, match=r"no tokens for 'b', 'train'; domains: a; splits: train, held"):
        data.tokens("b", "train")
    (folder / "00.held.bin").write_bytes(b"\0")
    with pytest.raises(MixwellError, match=r"00.held.bin has 1 bytes, \d+ expected; write the tokens again"):
        TokenData.open(folder)
    index = json.loads((folder / "index.json").read_text())
    index["domains"]["a"]["held"]["file"] = "../../etc/passwd"
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(MixwellError, match=r"has None bytes"):
        TokenData.open(folder)
    (folder / "index.json").write_text('{"format": 99}')
    with pytest.raises(MixwellError, match=r"index.json is not a token index of format 3"):
        TokenData.open(folder)
    with pytest.raises(MixwellError, match="no domains"):
        write_shards(folder, {}, tokenizer)
