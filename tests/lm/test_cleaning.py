"""Documents that are dropped: near copies, text of no quality, other languages; counted, one at a time."""

import random

import pytest

from mixwell.core.errors import MixwellError
from mixwell.lm import cleaning
from mixwell.lm.cleaning import COMMON, Cleaner, Cleaning, Quality, fault, language, shingles
from mixwell.lm.documents import Document
from mixwell.run import engine, recipe
from mixwell.run.stages.text import DataConfig
from tests.run import tiny

PROSE = ("The house stood at the end of the road, and nobody had lived in it for years. Its windows were dark, and the "
         "garden was full of weeds that had grown over the path. People who passed by said that it was haunted. ")
GOOD = "\n".join(f"{number} {PROSE}" for number in ("First", "Second", "Third"))


def jaccard(a, b):
    one, other = set(shingles(a)), set(shingles(b))
    return len(one & other) / len(one | other)


def words(seed, count=200):
    draws = random.Random(seed)
    return ["".join(draws.choices("abcdefghij", k=5)) for _ in range(count)]


def documents(texts):
    return [Document(f"{place}.txt", text) for place, text in enumerate(texts)]


def test_near_copies_go_and_what_is_less_alike_stays():
    pytest.importorskip("datasketch", reason="optional")
    own = words(0)
    near, far = own[:], own[:]
    near[100] = "changed"
    for place in range(0, 200, 12):
        far[place] = "changed"
    texts = [" ".join(row) for row in (own, words(1), near, far, own)]
    assert jaccard(texts[0], texts[2]) > 0.9 and jaccard(texts[0], texts[3]) < 0.6
    cleaner = Cleaner(Cleaning(near_copies=0.8))
    kept = [document.path for document in cleaner.clean(documents(texts))]
    assert kept == ["0.txt", "1.txt", "3.txt"] and cleaner.dropped == {cleaning.NEAR: 2}
    loose = Cleaner(Cleaning(near_copies=0.2))
    assert [document.path for document in loose.clean(documents(texts))] == ["0.txt", "1.txt"]


def test_case_and_marks_make_no_difference_to_a_copy():
    assert shingles("One, two; three: FOUR five six.") == shingles("one two three four five six")
    assert shingles("a b c d e f") == [b"a b c d e", b"b c d e f"] and shingles("a b") == [b"a b"]


def test_documents_pass_one_at_a_time():
    asked = []

    def endless():
        for number in range(10**9):
            asked.append(number)
            yield Document(f"{number}.txt", "" if number % 2 else GOOD)

    cleaner = Cleaner(Cleaning(quality=Quality()))
    stream = cleaner.clean(endless())
    assert [next(stream).path for _ in range(3)] == ["0.txt", "2.txt", "4.txt"]
    assert len(asked) == 5 and cleaner.dropped == {"too few words": 2}


@pytest.mark.parametrize(("text", "reason"), [
    (GOOD, ""), ("word " * 49, "too few words"), ("word " * 120, "too many words"), ("ab " * 60, "words too short"),
    ("abcdefghijkl " * 60, "words too long"), ("word # " * 30, "words too short"), ("word #word " * 30,
    "too many symbols"), ("12345 word " * 30, "too few words with letters"), ("- another line of several words\n" * 20,
    "too many bullets"), ("a line breaks off here ...\n" * 15 + "and another line does not do so\n" * 4,
    "too many symbols"), ("the same line stands here again\n" * 12, "too many repeated lines")])
def test_rules_of_quality_name_the_first_that_is_broken(text, reason):
    config = Quality(max_words=100) if reason == "too many words" else Quality()
    assert fault(text, config) == reason


def test_lines_that_break_off_are_told():
    lines = [f"line number {number} of this text breaks off in the middle of ..." for number in range(10)]
    assert fault("\n".join(lines), Quality(max_symbols=1.0)) == "too many lines that break off"
    assert fault("\n".join(lines), Quality(max_symbols=1.0, max_omissions=1.0)) == ""


@pytest.mark.parametrize(("text", "expected"), [
    (PROSE, "en"), ("Das Haus ist alt, und die Fenster sind dunkel, aber der Garten ist nicht klein.", "de"),
    ("La maison est au bout de la rue, et les fenêtres sont sombres dans la nuit.", "fr"),
    ("La casa está al final de la calle y las ventanas son oscuras, pero no se ve que es por la noche.", "es"),
    ("La casa è alla fine della strada e non è grande, ma il giardino è più bello di un parco.", "it"),
    ("A casa não é grande, mas o jardim da casa é mais bonito do que os parques com uma fonte.", "pt"),
    ("Het huis staat aan het einde van de straat en is niet groot, maar de tuin is wel groot voor een stad.", "nl"),
    ("Dom stoi na końcu ulicy i nie jest duży, ale to jest dom, o którym się mówi, że jest nawiedzony.", "pl"),
    ("Huset är inte stort, och det är en trädgård som är full av blommor på sommaren.", "sv"),
    ("Дом стоит в конце улицы, и никто в нём не живёт.", "ru"), ("家は道の終わりにあり、誰も住んでいません。", "ja"),
    ("房子在路的尽头，没有人住在里面。", "zh"), ("집은 길 끝에 있고 아무도 살지 않는다.", "ko"),
    ("x = [1, 2]\nfor y in x: z(y)", ""),
    ("12 34", ""),
    ("Το σπίτι είναι στο τέλος του δρόμου.", "el")])
def test_languages_are_told_by_script_and_common_words(text, expected):
    assert language(text) == expected


def test_a_language_is_kept_and_others_are_counted():
    cleaner = Cleaner(Cleaning(language="en"))
    kept = list(cleaner.clean(documents([PROSE, "Das ist nicht der Garten, und das ist auch nicht das Haus."])))
    assert len(kept) == 1 and cleaner.dropped == {cleaning.LANGUAGE: 1}
    assert set(COMMON) <= set(cleaning.LANGUAGES)


@pytest.mark.parametrize(("build", "message"), [
    (lambda: Cleaning(near_copies=0.0), "near_copies is 0.0"), (lambda: Cleaning(language="eng"), "Did you mean 'en'"),
    (lambda: Quality(min_words=5, max_words=5), "min_words is 5"), (lambda: Quality(max_bullets=2), "max_bullets is 2"),
    (lambda: Quality(max_symbols=-1), "max_symbols is -1"), (lambda: Quality(min_word_length=11), "min_word_length")])
def test_ranges_are_checked(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_run_drops_counts_and_tells(tmp_path):
    tiny.corpus(tmp_path)
    (tmp_path / "left" / "short.txt").write_text("ka lo\n")
    path = tiny.recipe_with(tmp_path, "stages: []\n")
    chosen = recipe.read(path)
    wanted = {"min_words": 10, "min_word_length": 2}
    made = recipe.changed(chosen, {"data.clean": {"quality": wanted}})
    engine.run(made, tmp_path / "out")
    from mixwell.report.records import read_run

    (data,) = (one for one in read_run(tmp_path / "out").stages if one.kind == "data")
    assert data.result["domains"]["left"]["read"]["dropped"] == {"too few words": 1}
    assert "left: 1 document dropped: too few words." in data.result["notices"]
    none = recipe.changed(chosen, {"data.clean": {"language": "en"}})
    with pytest.raises(MixwellError, match=r"leaves no document \(7 documents dropped: in another language\)"):
        engine.run(none, tmp_path / "none")
    assert DataConfig().clean is None


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    with pytest.raises(MixwellError, match=r"pip install 'mixwell\[clean\]'"):
        list(Cleaner(Cleaning(near_copies=0.5)).clean(documents([PROSE])))
