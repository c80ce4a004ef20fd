"""The byte-level tokenizer: nothing is unknown, everything comes back, and transformers reads the same files."""

import json
import random

import pytest

from mixwell.core.errors import MixwellError
from mixwell.lm import tokenizer as module
from mixwell.lm.tokenizer import LONGEST_WORD, Tokenizer
from tests.lm.templates import files, lossy, word_marks

TEXTS = ["def add(a, b):\n    return a + b\n" * 20, "the cat sat on the mat, and the dog sat too. " * 20]
HARD = ["", " ", "\r\n\t\x00\x7f", "naïve — 你好 \U0001f600 e\u0301", "a<|endoftext|>b", " leading  and   trailing  "]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 290)


@pytest.mark.parametrize("text", HARD)
def test_any_text_comes_back_and_its_bytes_add_up(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes_V[ids].sum() == len(text.encode())
    assert tokenizer.eos_id not in ids


def test_every_byte_has_a_token(tokenizer):
    singles = [tokenizer.encode(chr(code)) for code in range(0x80)] + [tokenizer.encode("ÿÀ𐍈")]
    assert all(singles)
    assert (tokenizer.token_bytes_V == 1).sum() == 256


def test_training_is_deterministic_and_shortens_what_it_saw(tokenizer):
    assert Tokenizer.train(reversed(TEXTS), 290).save_files() == tokenizer.save_files()
    assert tokenizer.vocab_size == 290
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 2


def test_merges_are_the_most_frequent_pairs():
    # "aaab aaab" in words: the first merge must be the pair that occurs most often, a+a.
    tokenizer = Tokenizer.train(["aab"] * 3 + ["cb"] * 2, 258)
    assert len(tokenizer.encode("aa")) == 1
    assert len(tokenizer.encode("ab")) == 2


def test_special_tokens_only_where_asked_for(tokenizer):
    assert tokenizer.encode("a<|endoftext|>", special=True)[-1] == tokenizer.eos_id == 0
    assert tokenizer.decode([tokenizer.eos_id]) == "<|endoftext|>"
    assert tokenizer.decode([tokenizer.eos_id], skip_special=True) == ""
    two = Tokenizer.train(TEXTS, 300, special=("<end>", "<user>"))
    assert two.encode("<user>", special=True) == [1]
    assert two.eos_id == 0


def test_batches_equal_single_texts(tokenizer):
    assert tokenizer.encode_batch(HARD) == [tokenizer.encode(text) for text in HARD]


def test_lengths_that_the_file_carries_are_never_applied(tokenizer):
    """`tok(x, truncation=True, max_length=4, padding="max_length")` leaves them in the file that is saved next."""
    files = tokenizer.save_files()
    carried = json.loads(files["tokenizer.json"]) | {
        "truncation": {"max_length": 4, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
        "padding": {"strategy": {"Fixed": 900}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<|endoftext|>"}}
    loaded = Tokenizer.from_files(files | {"tokenizer.json": json.dumps(carried).encode()})
    for text in (*HARD, *TEXTS):
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.encode(text, special=True) == tokenizer.encode(text, special=True)
    assert loaded.encode_batch([*HARD, *TEXTS]) == tokenizer.encode_batch([*HARD, *TEXTS])
    assert loaded.digest == tokenizer.digest, "lengths change no id's meaning"
    kept = json.loads(loaded.save_files()["tokenizer.json"])
    assert (kept["truncation"], kept["padding"]) == (carried["truncation"], carried["padding"])


@pytest.mark.slow
def test_transformers_loads_the_same_tokenizer(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    for name, data in tokenizer.save_files().items():
        (tmp_path / name).write_bytes(data)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the cat\n  sat — 你好"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.eos_id
    assert Tokenizer.load(tmp_path).save_files() == tokenizer.save_files()
    theirs.save_pretrained(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").encode(text) == tokenizer.encode(text)


def test_bytes_of_a_tokenizer_with_word_marks():
    model = {"type": "BPE", "vocab": {"<unk>": 0, "<0x0A>": 1, "\u2581cat": 2, "é": 3, "<s>": 4}, "merges": [],
             "unk_token": "<unk>", "byte_fallback": True}
    file = {"version": "1.0", "model": model, "decoder": {"type": "ByteFallback"},
            "added_tokens": [{"id": 4, "content": "<s>", "special": True, "single_word": False, "lstrip": False,
                              "rstrip": False, "normalized": False}]}
    found = Tokenizer.from_files({"tokenizer.json": json.dumps(file).encode()})
    assert found.token_bytes_V.tolist()[1:] == [1, 4, 2, 0]
    with pytest.raises(MixwellError, match=r"names no end-of-text token; add eos_token to tokenizer_config\.json"):
        _ = found.eos_id


def test_the_end_token_may_be_written_as_an_object(tokenizer):
    files = tokenizer.save_files() | {"tokenizer_config.json": b'{"eos_token": {"content": "<|endoftext|>"}}'}
    assert Tokenizer.from_files(files).eos_id == 0


@pytest.mark.parametrize(("size", "special", "message"), [
    (200, ("<e>",), "vocab_size 200 is too small: 256 bytes and 1 special tokens need 257 or more"),
    (300, (), "expected at least one, each once"),
    (300, ("<e>", "<e>"), "expected at least one, each once"),
])
def test_refusals_of_training(size, special, message):
    with pytest.raises(MixwellError, match=message):
        Tokenizer.train(TEXTS, size, special)


def test_refusals_of_files(tmp_path, tokenizer):
    with pytest.raises(MixwellError, match=r"holds no tokenizer.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(MixwellError, match=r"no tokenizer.json among the tokenizer's files \(a.txt\)"):
        Tokenizer.from_files({"a.txt": b""})
    with pytest.raises(MixwellError, match=r"tokenizer.json is not a tokenizer"):
        Tokenizer.from_files({"tokenizer.json": b"{}"})
    main = json.loads(tokenizer.save_files()["tokenizer.json"])
    main["model"]["vocab"]["a"] = 2**31
    with pytest.raises(MixwellError, match=r"its largest id is 2147483648; expected ids below 16777216"):
        Tokenizer.from_files({"tokenizer.json": json.dumps(main).encode()})
    broken = Tokenizer.from_files(tokenizer.save_files() | {"tokenizer_config.json": b"[1]"})
    with pytest.raises(MixwellError, match=r"tokenizer_config.json holds list; expected keys and values"):
        _ = broken.eos_id


def test_one_very_long_word_is_learned_from_in_pieces(monkeypatch):
    """300 kB of DNA is one word; what learning it takes must not grow with its square."""
    letters = "".join(random.Random(0).choices("ACGT", k=300_000))
    handed = list(module._bounded(f"a gene: {letters}  and{' ' * 2000}b"))
    assert "".join(handed) == f"a gene: {letters}  and{' ' * 2000}b"
    assert max(map(len, "".join(handed).split())) == len(letters)
    assert max(len(word) for piece in handed for word in piece.split()) == LONGEST_WORD
    assert handed[0] == f"a gene: {letters[:LONGEST_WORD]}"
    assert list(module._bounded(TEXTS[1])) == [TEXTS[1]], "usual text is handed on whole"
    found = Tokenizer.train([letters], 400)
    assert found.vocab_size == 400
    assert found.decode(found.encode(letters)) == letters


@pytest.mark.slow
def test_bos_is_what_transformers_puts_before_a_text(tmp_path):
    transformers = pytest.importorskip("transformers")
    trained = Tokenizer.train(TEXTS, 290, ("<e>", "<b>"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<e>", "bos_token": "<b>"}
    trained = Tokenizer(trained.save_files() | {"tokenizer_config.json": json.dumps(config).encode()})
    marked = word_marks("inst")
    asked = json.dumps(config | {"add_bos_token": True}).encode()
    flagged = Tokenizer(trained.save_files() | {"tokenizer_config.json": asked})
    cases = {"none": trained, "bos": trained.with_bos(True), "off": trained.with_bos(True).with_bos(False),
             "marks": marked, "unmarked": marked.with_bos(False), "flag": flagged}
    for name, found in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, data in found.save_files().items():
            (folder / file).write_bytes(data)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        for text in ("the cat  sat", " naïve\n"):
            assert found.prompt(text) == theirs(text)["input_ids"], name
        begins = found.prompt("the")[0] == found.id_of(found.names["bos_token"])
        assert begins == (name in ("bos", "marks"))


def test_bos_needs_a_name(tokenizer):
    unnamed = Tokenizer(tokenizer.save_files() | {"tokenizer_config.json": b"{}", "special_tokens_map.json": b"{}"})
    with pytest.raises(MixwellError, match=r"names no beginning-of-text token; add bos_token to tokenizer_config\.js"):
        unnamed.with_bos(True)


def test_ids_behind_a_text_are_told_from_those_before_it(tokenizer):
    main = json.loads(tokenizer.save_files()["tokenizer.json"])
    step = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    main["post_processor"] = {"type": "TemplateProcessing", "single": [text, step], "pair": [text, second],
                              "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0],
                                                                   "tokens": ["<|endoftext|>"]}}}
    found = Tokenizer(files(main, "<|endoftext|>", "<|endoftext|>"))
    assert found.around == ((), (0,))
    assert found.with_bos(True).around == ((0,), (0,))
    assert found.prompt("the cat") == tokenizer.encode("the cat")


def test_a_model_that_knows_special_tokens_as_words_makes_none_of_text():
    found = lossy()
    end = found.eos_id
    assert found._backend.encode("a</s>b", add_special_tokens=False).ids.count(end) == 1
    assert end not in found.encode("a</s>b") + found.encode_batch(["</s></s>"])[0]
    assert found.encode("a</s>b", special=True).count(end) == 1
    letter = chr(module.PRIVATE[0])
    assert end not in found.encode(f"a{letter}0{letter}{letter}1{letter}b"), "not even by the name it goes by inside"


def test_what_does_not_come_back_is_known(tokenizer):
    assert tokenizer.round_trips and not lossy().round_trips and not word_marks("inst").round_trips
    found = lossy()
    assert found.decode(found.encode("ab cd")) == "ab cd" and found.unknown_bytes("ab cd") == 0
    assert found.decode(found.encode("Ab")) == "ab" and found.unknown_bytes("Ab") == 0
    assert found.unknown_bytes("aéb xyz c") == 2 + 3
    main = json.loads(tokenizer.save_files()["tokenizer.json"])
    prefixed = {**main["pre_tokenizer"], "add_prefix_space": True}
    for part in ({"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": prefixed}, {"decoder": None}):
        assert not Tokenizer(tokenizer.save_files() | {"tokenizer.json": json.dumps(main | part).encode()}).round_trips


@pytest.mark.parametrize("absent", ["version", "truncation", "padding", "added_tokens", "normalizer", "post_processor"])
def test_what_a_file_leaves_out_is_what_its_library_takes_it_for(tokenizer, absent):
    main = json.loads(tokenizer.save_files()["tokenizer.json"])
    del main[absent]
    del main["model"]["type"]
    found = Tokenizer(tokenizer.save_files() | {"tokenizer.json": json.dumps(main).encode()})
    for text in HARD:
        assert found.encode(text) == tokenizer.encode(text)
    assert found.round_trips and (found.token_bytes_V[1:] == tokenizer.token_bytes_V[1:]).all()


def test_the_template_of_a_file_of_its_own_comes_before_that_of_the_configuration(tokenizer):
    config = json.dumps({"chat_template": "one"}).encode()
    inside = Tokenizer(tokenizer.save_files() | {"tokenizer_config.json": config})
    assert inside.chat_template == "one"
    assert inside.with_chat_template("two").chat_template == "two"
    named = json.dumps({"chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": "y"}]})
    assert Tokenizer(tokenizer.save_files() | {"tokenizer_config.json": named.encode()}).chat_template == "y"
    assert tokenizer.chat_template is None
