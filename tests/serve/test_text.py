"""The text of ids as they come is the text of all of them: whole characters, up to the first stop text."""

import random

import pytest

from mixwell.lm.streaming import Text
from mixwell.serve.text import Places, Spelling
from tests.lm.templates import byte_level

TOKENIZER = byte_level("thinking")
SAID = "héllo wörld, say hello 你好 🎉 and again\n\nhello world"


def pieces(ids, stops=()):
    text = Text(TOKENIZER, stops)
    found = []
    for number in ids:
        found.append(text.push(number))
        if text.stopped:
            break
    found.append(text.close())
    return found, text


def test_pieces_join_to_the_text_and_cut_no_character():
    ids = TOKENIZER.encode(SAID)
    found, _ = pieces(ids)
    assert "".join(found) == SAID and len(found) == len(ids) + 1
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)
    assert max(map(len, found)) <= 6


def test_any_ids_give_the_text_that_they_decode_to():
    draw = random.Random(0)
    for _ in range(50):
        ids = [draw.randrange(TOKENIZER.vocab_size) for _ in range(30)]
        found, _ = pieces(ids)
        assert "".join(found) == TOKENIZER.decode(ids, skip_special=True)


@pytest.mark.parametrize("stops", [("say",), ("again", "world"), ("好",), ("lo w", "orl"), ("hello x", "lo 你"),
                                   ("\n\n",)])
def test_text_ends_before_the_first_stop_and_tells_nothing_of_it(stops):
    found, text = pieces(TOKENIZER.encode(SAID), stops)
    places = [SAID.find(stop) for stop in stops if stop in SAID]
    assert "".join(found) == SAID[: min(places)]
    assert text.stopped
    shown = ""
    for piece in found:  # never more than what stays
        shown += piece
        assert SAID[: min(places)].startswith(shown)


def test_what_only_began_like_a_stop_is_told():
    found, text = pieces(TOKENIZER.encode("say hello wor"), ("hello world",))
    assert "".join(found) == "say hello wor" and not text.stopped
    assert found[-1] == "hello wor"


def test_ids_are_spelt_in_bytes_that_join_to_the_text():
    spelling = Spelling(TOKENIZER)
    ids = TOKENIZER.encode(SAID)
    assert b"".join(map(spelling.bytes_of, ids)).decode() == SAID
    lone = TOKENIZER.encode("好")
    assert spelling.text(TOKENIZER.encode("say")[0]) in "say"
    assert [spelling.text(number) for number in lone] == [f"bytes:\\x{byte:02x}" for byte in "好".encode()]
    end = TOKENIZER.id_of("<|im_end|>")
    assert spelling.text(end) == "<|im_end|>" and spelling.text(10**6) == ""


def test_places_count_the_characters_that_are_whole_before_each_id():
    draw, spelling = random.Random(1), Spelling(TOKENIZER)
    for ids in (TOKENIZER.encode(SAID), [draw.randrange(TOKENIZER.vocab_size) for _ in range(400)]):
        places, before = Places(), b""
        for number in ids:
            assert places.next(spelling.bytes_of(number)) == len(before.decode(errors="ignore"))
            before += spelling.bytes_of(number)
