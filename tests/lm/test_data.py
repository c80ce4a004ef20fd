"""Text by domain: reading it, telling train from held-out, laying it down as tokens."""

import json

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.lm.data import Document, Split, TokenData, read_domain, split_documents, write_shards
from mixwell.lm.tokenizer import Tokenizer

TEXTS = [f"Text number {i}: naïve — 你好.\nline two of {i}\n" for i in range(40)]


def documents(texts):
    return [Document(f"{i:02d}.txt", text) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 300)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for name, text in (("b.txt", "two\r\n"), ("a.md", "\ufeffone"), ("deep/c.txt", "three"), (".hidden", "no"),
                       ("empty.txt", " \n")):
        (tmp_path / "texts" / name).write_bytes(text.encode())
    return tmp_path / "texts"


def test_a_folder_a_glob_and_a_file(folder):
    found = [("a.md", "one"), ("b.txt", "two\r\n"), ("deep/c.txt", "three")]
    assert read_domain(folder) == [Document(path, text) for path, text in found]
    assert [d.path for d in read_domain(f"{folder}/*.txt")] == ["b.txt"]
    assert [d.path for d in read_domain(f"{folder}/**/*.txt")] == ["b.txt", "deep/c.txt"]
    assert read_domain(str(folder / "b.txt")) == [Document("b.txt", "two\r\n")]


@pytest.mark.parametrize(("name", "data", "message"), [
    ("x.bin", b"\x89PNG\0\0", r"x.bin is a binary file; expected UTF-8 text. Leave it out, with a glob such as"),
    ("x.txt", "caf\xe9 x".encode("latin1"), r"x.txt is not UTF-8 \(byte 3: .*convert it"),
])
def test_files_that_are_not_text_are_named(folder, name, data, message):
    (folder / name).write_bytes(data)
    with pytest.raises(MixwellError, match=message):
        read_domain(folder)


def test_missing_and_empty_domains_are_named(folder, tmp_path):
    with pytest.raises(MixwellError, match=r"nothing is not there; expected a file, a folder or a glob"):
        read_domain(tmp_path / "nothing")
    with pytest.raises(MixwellError, match=r"\*.rst holds no files"):
        read_domain(f"{folder}/*.rst")
    with pytest.raises(MixwellError, match=r"the 1 files found hold no text"):
        read_domain(folder / "empty.txt")


def test_the_split_keeps_every_text_once_and_on_its_side():
    docs = documents(TEXTS)
    split = split_documents(docs, 0.25)
    assert sorted(split.train + split.held, key=lambda d: d.path) == docs
    assert 3 <= len(split.held) <= 17  # 10 expected; four standard deviations are 11
    assert split.note == f"by file: {len(split.train)} to train on, {len(split.held)} held out"
    again = split_documents([*reversed(docs), Document("copy.txt", docs[0].text)], 0.25)
    assert {d.text for d in again.held} == {d.text for d in split.held}
    assert len(again.train + again.held) == len(docs)
    fewer = split_documents(docs[:20], 0.25)
    assert {d.text for d in fewer.held} == {d.text for d in split.held} & {d.text for d in docs[:20]}


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_both_sides_get_a_document(fraction):
    split = split_documents(documents(TEXTS), fraction)
    assert min(len(split.train), len(split.held)) == 1


@pytest.mark.parametrize(("text", "fraction", "train", "note"), [
    ("a\nb\nc\nd\ne\n", 0.3, "a\nb\nc\n", "one file: held out from line 4 on"),
    ("x" * 90 + "\nlast", 0.3, "x" * 90 + "\n", "one file: held out from line 2 on"),
    ("abcde", 0.2, "abcd", "one file of one line: held out from character 5 on"),
])
def test_a_lone_file_is_cut_at_a_line(text, fraction, train, note):
    split = split_documents([Document("a.txt", text)], fraction)
    assert (split.train[0].text, split.note) == (train, note)
    assert split.train[0].text + split.held[0].text == text


def test_refusals_of_splitting():
    with pytest.raises(MixwellError, match="held_fraction 0: expected a share between 0 and 1"):
        split_documents(documents(TEXTS), 0)
    with pytest.raises(MixwellError, match="no documents to split"):
        split_documents([])
    with pytest.raises(MixwellError, match=r"a.txt holds one character"):
        split_documents([Document("a.txt", "x")])


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
    with pytest.raises(MixwellError, match=r"index.json is not a token index of format 1"):
        TokenData.open(folder)
    with pytest.raises(MixwellError, match="no domains"):
        write_shards(folder, {}, tokenizer)
