"""Tokenizers of GGUF files: SentencePiece's pairs by score against its own greedy loop, splits, ends, refusals."""

import itertools

import pytest
import tokenizers

from mixwell.core.errors import MixwellError
from mixwell.lm.gguf.tokenizer import SPLITS, merges_by_score, tokenizer_files

PIECES = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], "\u2581", "a", "b", "c", "d", "ab", "cd",
          "abc", "\u2581a", "\u2581ab", "bc", "abcd", "dd"]
SCORES = [0.0] * 259 + [-100.0 - i for i in range(5)] + [-3.0, -1.0, -2.0, -4.0, -0.5, -2.5, -0.1, -7.0]


def spm(**more):
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": PIECES, "tokenizer.ggml.scores": SCORES,
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 259),
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0, **more}


def backend(metadata):
    return tokenizers.Tokenizer.from_str(tokenizer_files(metadata, "here")["tokenizer.json"].decode())


def greedy(text):
    """SentencePiece's own way: join the neighbours whose token scores best, the first of equals, until none is left."""
    parts = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        joined = [(SCORES[PIECES.index(a + b)], -i) for i, (a, b) in enumerate(itertools.pairwise(parts))
                  if a + b in PIECES]
        if not joined:
            break
        place = -max(joined)[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    return [PIECES.index(part) for part in parts]


@pytest.mark.parametrize("text", ["abcd", "ab abc cd", "ddabab", "a b c d", "abcabcdd cdab", ""])
def test_pieces_join_by_score(text):
    found = backend(spm()).encode(text, add_special_tokens=False).ids
    assert found == (greedy(text) if text else found)
    assert backend(spm()).decode(found) == text


def test_unknown_letters_become_bytes_and_come_back():
    made = backend(spm())
    ids = made.encode("aé", add_special_tokens=False).ids
    assert ids[-2:] == [3 + 0xC3, 3 + 0xA9] and made.decode(ids) == "aé"


def test_texts_begin_and_end_as_the_file_says():
    assert backend(spm()).encode("ab").ids[0] == 1
    assert backend(spm(**{"tokenizer.ggml.add_bos_token": False})).encode("ab").ids[0] != 1
    ended = backend(spm(**{"tokenizer.ggml.add_eos_token": True})).encode("ab").ids
    assert ended[0] == 1 and ended[-1] == 2
    assert backend(spm(**{"tokenizer.ggml.add_space_prefix": False})).encode("ab", add_special_tokens=False).ids == [
        PIECES.index("ab")]


def test_merges_are_all_pairs_that_make_a_token():
    merges = merges_by_score({piece: i for i, piece in enumerate(PIECES)}, SCORES)
    assert merges[0] in {("abc", "d"), ("ab", "cd")}
    assert ("ab", "c") in merges and ("a", "bc") in merges and merges[-1] == ("d", "d")


@pytest.mark.parametrize(("pre", "pieces"), [
    ("gpt-2", ["it", "'s", " 1234"]), ("smollm", ["it", "'s", " ", "1", "2", "3", "4"]),
    ("llama-bpe", ["it", "'s", " ", "123", "4"]), ("qwen2", ["it", "'s", " ", "1", "2", "3", "4"])])
def test_text_is_split_as_the_name_says(pre, pieces):
    split = SPLITS[pre]().pre_tokenize_str("it's 1234")
    assert [piece.replace("\u0120", " ") for piece, _ in split] == pieces


def test_refuses_by_name():
    with pytest.raises(MixwellError, match="splits text as 'tekken' does; known are gpt-2"):
        tokenizer_files({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "tekken"}, "here")
    with pytest.raises(MixwellError, match="of the kind 'bert'; read are gpt2, llama"):
        tokenizer_files({"tokenizer.ggml.model": "bert"}, "here")
    assert tokenizer_files({"tokenizer.ggml.model": "none"}, "here") == {}
