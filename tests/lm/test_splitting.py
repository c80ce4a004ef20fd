"""Cap, split and order: each an even draw that knows nothing of the others, by bytes, and stable."""

import math
import random
from collections import Counter

import pytest

from mixwell.core.errors import MixwellError
from mixwell.lm.documents import Document, size_bytes
from mixwell.lm.splitting import capped, head, place, split_documents

TEXTS = [f"Text number {i}: naïve — 你好.\nline two of {i}\n" for i in range(40)]


def documents(texts):
    return [Document(f"{i:02d}.txt", text) for i, text in enumerate(texts)]


def many(count, seed=0, low=500, high=1500):
    draws = random.Random(seed)
    return [Document(str(i), f"{seed} {i} " + "word " * (draws.randint(low, high) // 5)) for i in range(count)]


def texts(side):
    return {d.text for d in side}


@pytest.mark.parametrize("asked", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("kept", [0.02, 0.1, 0.12, 1.0])
def test_the_cap_does_not_choose_what_is_held_out(asked, kept):
    # 0.12 is the case of 33 MB under a cap of 4 MB: with one hash for both, 0.05 / 0.12 = 42 % were held out.
    docs = many(2000)
    found = capped(docs, round(kept * size_bytes(docs)))
    split = split_documents(found.documents, asked)
    count = len(found.documents)
    sigma = math.sqrt(asked * (1 - asked) * count)
    assert abs(len(split.held) - asked * count) < 4 * sigma + 1
    assert 0.75 * asked <= split.held_share <= 1.25 * asked


def test_the_draws_are_even_and_independent():
    docs = many(4000, low=10, high=20)
    draws = {purpose: [place(purpose, d) for d in docs] for purpose in ("cap", "hold out", "order")}
    for values in draws.values():
        counts = [sum(low <= v < low + 0.1 for v in values) for low in [i / 10 for i in range(10)]]
        assert sum((c - 400) ** 2 / 400 for c in counts) < 33  # chi-square, 9 degrees: 1 in 10,000
    names = list(draws)
    for a, b in ((names[0], names[1]), (names[0], names[2]), (names[1], names[2])):
        correlation = 12 * sum((x - 0.5) * (y - 0.5) for x, y in zip(draws[a], draws[b])) / len(docs)
        assert abs(correlation) < 4 / math.sqrt(len(docs))


def test_a_document_stays_on_its_side_whatever_comes_goes_or_is_let_through():
    docs = many(3000, low=50, high=150)
    whole = split_documents(docs, 0.1)
    for part in (docs[:1500], docs[700:], capped(docs, size_bytes(docs) // 3).documents,
                 capped(docs, 2 * size_bytes(docs) // 3).documents, [*docs, *many(1000, seed=1, low=50, high=150)]):
        split = split_documents(part, 0.1)
        inside = {d.identity for d in part}
        known = {d.identity for d in docs}
        held = {d.identity for d in split.held}
        assert held & known == {d.identity for d in whole.held} & inside
        assert not split.cut


def test_the_side_of_a_text_that_the_cap_cuts_is_that_of_the_whole_text():
    docs = many(300)
    sides = {d.identity: "held" for d in split_documents(docs, 0.3).held}
    for number in range(40):
        found = capped(docs, size_bytes(docs) // 2 + 31 * number)
        cut, = [d for d in found.documents if d.whole]
        split = split_documents(found.documents, 0.3)
        assert (cut in split.held) == (sides.get(cut.identity) == "held")


def test_the_order_is_the_same_whatever_order_the_texts_come_in():
    docs = many(200)
    split, again = split_documents(docs, 0.2), split_documents(docs[::-1], 0.2)
    assert (split.train, split.held) == (again.train, again.held)
    for known in ([int(d.path) for d in split.train], [place("hold out", d) for d in split.train],
                  [place("cap", d) for d in split.train]):
        assert known != sorted(known)


def test_every_text_stands_on_one_side_once_and_copies_count_once():
    docs = documents(TEXTS)
    split = split_documents(docs, 0.25)
    assert sorted(split.train + split.held, key=lambda d: d.path) == docs
    assert split.note == f"by document: {len(split.train)} to train on, {len(split.held)} held out"
    again = split_documents([*docs, Document("copy.txt", docs[0].text)], 0.25)
    assert again == split
    assert capped([*docs, *docs], None).copies == 40 and capped([*docs, *docs], None).documents == docs


SEVEN = bytes(b"abcde \n"[i % 7] for i in range(256))  # each byte a letter, a space or the end of a line


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sizes", [[60_000] + [400] * 100, [30_000, 20_000, 10_000] + [900] * 20, [5000] * 6,
                                   [50_000, 50_000], [7000] * 30, [100_000] + [10] * 3])
def test_a_few_large_documents_do_not_bend_the_share(seed, sizes):
    draws = random.Random(seed)
    docs = [Document(str(i), draws.randbytes(size).translate(SEVEN).decode()) for i, size in enumerate(sizes)]
    everything = Counter("".join(d.text for d in docs))
    for asked in (0.05, 0.1, 0.5, 0.9):
        split = split_documents(docs, asked)
        slack = min(asked, 1 - asked) / 2
        assert asked - slack - 0.001 <= split.held_share <= asked + slack + 0.001
        assert split.held and split.train
        assert Counter("".join(d.text for d in split.train + split.held)) == everything


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_both_sides_hold_text_at_the_extremes(fraction):
    split = split_documents(documents(TEXTS), fraction)
    assert min(len(split.train), len(split.held)) == 1 and all(d.text for d in split.train + split.held)


@pytest.mark.parametrize(("text", "fraction", "train", "note"), [
    ("a\nb\nc\nd\ne\n", 0.3, "a\nb\nc\n", "one document: held out from line 4 on"),
    ("x" * 90 + "\nlast", 0.04, "x" * 90 + "\n", "one document: held out from line 2 on"),
    ("title\n" + "word " * 100, 0.1, "title\n" + "word " * 90, "one document: held out from character 457 on"),
    ("abcde", 0.2, "abcd", "one document: held out from character 5 on"),
    ("你好吗他", 0.25, "你好吗", "one document: held out from character 4 on"),
])
def test_a_lone_document_is_cut_near_its_end(text, fraction, train, note):
    split = split_documents([Document("a.txt", text)], fraction)
    assert (split.train[0].text, split.note, split.cut) == (train, note, "a.txt")
    assert split.train[0].text + split.held[0].text == text


def test_the_cap_is_filled_to_the_byte_and_lower_caps_keep_less_of_the_same():
    docs = many(200)
    before: set[str] = set()
    for most in range(5000, 60_000, 5000):
        found = capped(iter(docs), most)
        assert most - 3 <= size_bytes(found.documents) <= most
        assert (found.found, found.found_bytes) == (200, size_bytes(docs))
        assert [int(d.path) for d in found.documents] == sorted(int(d.path) for d in found.documents)
        whole = {d.path for d in found.documents if not d.whole}
        assert before <= whole and sum(bool(d.whole) for d in found.documents) <= 1
        before = whole
    assert capped(docs, size_bytes(docs)).documents == docs


def test_a_text_is_cut_at_a_line_or_between_characters():
    assert head(Document("a", "one\ntwo\nthree"), 9).text == "one\ntwo\n"
    assert head(Document("a", "1\n" + "é" * 20), 9).text == "1\n" + "é" * 3
    assert head(Document("a", "one\ntwo"), 5).identity == Document("b", "one\ntwo").identity


def test_refusals():
    with pytest.raises(MixwellError, match="held_fraction 0: expected a share between 0 and 1"):
        split_documents(documents(TEXTS), 0)
    with pytest.raises(MixwellError, match="no documents to split"):
        split_documents([])
    with pytest.raises(MixwellError, match=r"a.txt holds one character"):
        split_documents([Document("a.txt", "x")])
