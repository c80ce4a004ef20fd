"""Tokenizers without a tokenizer.json: transformers makes one, and where it is not there one line says what to do."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import tokenizers

import mixwell
from mixwell.core.errors import MixwellError
from mixwell.lm.tokenizer import Tokenizer
from tests.lm.test_folder import build

TEXT = "The cat sat on the mat. It's 12345 times größer!\n"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}"


@pytest.fixture
def words(tmp_path):
    """A folder with vocab.json and merges.txt alone, and the tokenizer that wrote it."""
    folder = tmp_path / "words"
    folder.mkdir()
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator([TEXT] * 9, vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False)
    made.save_model(str(folder))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder, made


def model_beside(folder, place):
    """A small model, and beside it the files of `folder`."""
    written = build(vocab_size=400).save(place)
    shutil.copytree(folder, written, dirs_exist_ok=True)
    return written


def test_words_and_merges_are_read(words):
    folder, made = words
    found = Tokenizer.load(folder)
    assert found.encode(TEXT) == made.encode(TEXT).ids
    assert found.decode(found.encode(TEXT)) == TEXT
    assert found.eos_id == 0
    assert found.chat_template == TEMPLATE


def test_the_class_of_the_files_cuts_the_text(words):
    folder, _ = words
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    found = Tokenizer.load(folder)
    assert [found.decode([number]) for number in found.encode("12345")] == list("12345")  # a digit a piece


def test_a_model_brings_it_along(words, tmp_path):
    folder, made = words
    loaded = mixwell.load(model_beside(folder, tmp_path / "model"))
    assert loaded.tokenizer.encode(TEXT) == made.encode(TEXT).ids
    written = loaded.save(tmp_path / "again")
    assert Tokenizer.load(written).encode(TEXT) == made.encode(TEXT).ids


def test_without_transformers_one_line_says_what_to_do(words, tmp_path, monkeypatch):
    folder = model_beside(words[0], tmp_path / "model")
    monkeypatch.setitem(sys.modules, "transformers", None)
    line = r"its tokenizer as vocab.json with merges.txt, without tokenizer.json.*pip install transformers"
    with pytest.raises(MixwellError, match=line):
        Tokenizer.load(folder)
    with pytest.warns(UserWarning, match=line):
        model = mixwell.load(folder)
    assert model.tokenizer is None


def test_pieces_need_the_packages_that_read_them(words, monkeypatch):
    folder, _ = words
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0b\n\x05<unk>")
    with pytest.raises(MixwellError, match=r"its tokenizer as tokenizer\.model.*sentencepiece tiktoken protobuf"):
        Tokenizer.load(folder)


def test_sentencepiece_gives_its_own_pieces(tmp_path):
    library = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    (tmp_path / "text.txt").write_text(TEXT * 9)
    library.SentencePieceTrainer.train(input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "tokenizer"),
                                       vocab_size=80, model_type="bpe", minloglevel=2)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = library.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    text = "The cat sat on the mat."
    assert Tokenizer.load(tmp_path).encode(text) == theirs.encode(text)
