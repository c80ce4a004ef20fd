"""Reading text: files, folders, globs, tables of rows, compressed ones; what is passed over and what is refused."""

import bz2
import gzip
import json
import lzma
import os
import sys

import pytest

from mixwell.core.errors import MixwellError
from mixwell.lm import documents
from mixwell.lm.conversation import Conversation
from mixwell.lm.documents import Document, Reader, read_domain

ROWS = ["first, with a comma", 'second "quoted"\nof two lines', "naïve — 你好"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for name, text in (("b.txt", "two\r\n"), ("a.md", "\ufeffone"), ("deep/c.txt", "three"), (".hidden", "no"),
                       ("empty.txt", " \n")):
        (tmp_path / "texts" / name).write_bytes(text.encode())
    (tmp_path / "texts/.git").mkdir()
    (tmp_path / "texts/.git/config.txt").write_text("no")
    return tmp_path / "texts"


def paths(spec):
    return [d.path for d in read_domain(spec)]


def test_a_folder_a_glob_and_a_file(folder):
    found = [("a.md", "one"), ("b.txt", "two\r\n"), ("deep/c.txt", "three")]
    assert read_domain(folder) == [Document(path, text) for path, text in found]
    assert paths(f"{folder}/*.txt") == ["b.txt"]
    assert paths(f"{folder}/**/*.txt") == ["b.txt", "deep/c.txt"]
    assert paths(f"{folder}/**") == paths(folder)
    assert paths(f"{folder}/*/c.t?t") == ["deep/c.txt"]
    assert paths(f"{folder}/**/deep/[a-c].txt") == ["deep/c.txt"]
    assert read_domain(str(folder / "b.txt")) == [Document("b.txt", "two\r\n")]


def test_sizes_and_identities():
    assert Document("a", "é").size == 2 and Document("a", "e").size == 1
    assert Document("a", "x").identity == Document("b", "x").identity != Document("a", "y").identity
    assert Document("a", "part", Document("a", "whole").identity).identity == Document("b", "whole").identity


NOT_TEXT = [
    ("x.bin", b"\x89PNG\0\0", "binary", r"x.bin is a binary file; expected UTF-8 text. Leave it out, with a glob such"),
    ("x.dat", b"x" * 100_000 + b"\0", "binary", r"x.dat is a binary file"),
    ("x.txt", "caf\xe9 x".encode("latin1"), "not UTF-8",
     r"x.txt is not UTF-8 \(byte 3: .*and may be WINDOWS-1252 or LATIN1; convert it \(iconv -f WINDOWS-1252 -t"),
    ("x.txt", "日本語の文章です。".encode("shift_jis"), "not UTF-8", r"may be SHIFT_JIS or .*WINDOWS-1251; convert it"),
    ("x.txt", "Всем привет".encode("cp1251"), "not UTF-8", r"x.txt is not UTF-8 .*WINDOWS-1251; convert it"),
    ("x.txt", "plain words".encode("utf-16-le"), "not UTF-8", r"x.txt looks like UTF-16LE without its mark; convert"),
    ("x.csv", "text\nwords".encode("utf-16-be"), "not UTF-8", r"x.csv looks like UTF-16BE without its mark"),
    ("x.jsonl", '{"text": "caf\xe9"}'.encode("latin1"), "not UTF-8", r"x.jsonl is not UTF-8 \(invalid .*LATIN1;"),
    ("x.csv", b"a,b\n1,2\n", "no text field", r"x.csv has no field 'text' or .*\(its fields: a, b\); name the one"),
    ("x.jsonl", b'{"a": []}\n', "no text field", r"has no field .*\(its fields: a\).*data.text_field"),
    ("y.jsonl", b'{"text": {"a": 1}}\n', "no text field", r"'text' holds dict; expected text"),
    ("z.jsonl", b"3\n", "no text field", r"row 1: int; expected objects"),
    ("x.parquet", b"PAR?", "broken Parquet", "x.parquet is not a Parquet file"),
    ("x.arrow", b"ARR", "broken Arrow", "x.arrow is not an Arrow file"),
]


@pytest.mark.parametrize(("name", "data", "reason", "message"), NOT_TEXT)
def test_what_is_not_text_is_passed_over_among_others_and_refused_alone(folder, name, data, reason, message):
    (folder / name).write_bytes(data)
    reader = Reader(folder)
    assert [d.path for d in reader] == ["a.md", "b.txt", "deep/c.txt"]
    assert reader.notices == [f"1 of 5 files passed over ({reason}): {name}"]
    with pytest.raises(MixwellError, match=message):
        read_domain(folder / name)


def test_many_files_passed_over_are_counted(folder):
    for number in range(5):
        (folder / f"{number}.png").write_bytes(b"\0")
    reader = Reader(folder)
    list(reader)
    assert reader.notices == ["5 of 9 files passed over (binary): 0.png, 1.png, 2.png, and 2 more"]
    with pytest.raises(MixwellError, match=r"the 5 files found hold no text \(5 of 5 files passed over \(binary\)"):
        read_domain(f"{folder}/*.png")


def test_missing_empty_and_unreadable_domains_are_named(folder, tmp_path, monkeypatch):
    with pytest.raises(MixwellError, match=r"nothing is not there; expected a file, a folder or a glob"):
        read_domain(tmp_path / "nothing")
    with pytest.raises(MixwellError, match=r"\*.rst holds no files"):
        read_domain(f"{folder}/*.rst")
    with pytest.raises(MixwellError, match=r"the 1 files found hold no text"):
        read_domain(folder / "empty.txt")

    def denied(path, wanted):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(documents.rows, "texts", denied)
    with pytest.raises(MixwellError, match=r"cannot read .*a.md: Permission denied. Make it readable"):
        read_domain(folder)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_encodings_that_say_what_they_are(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("naïve — 你好\n".encode(encoding))
    (tmp_path / "b.csv").write_bytes("text\nnaïve\n".encode(encoding))
    assert [d.text for d in read_domain(tmp_path)] == ["naïve — 你好\n", "naïve"]


def json_lines(rows, field="text"):
    return "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(rows)).encode()


def csv_bytes(rows, delimiter=","):
    quoted = [text.replace('"', '""') for text in rows]
    return (f"id{delimiter}text\n" + "".join(f'{i}{delimiter}"{text}"\n' for i, text in enumerate(quoted))).encode()


FILES = {
    "a.jsonl": json_lines(ROWS), "a.ndjson": json_lines(ROWS), "a.json": json_lines(ROWS),
    "b.json": json.dumps([{"text": text} for text in ROWS]).encode(), "c.json": json.dumps(ROWS).encode(),
    "d.jsonl": json_lines(ROWS, "content"), "e.jsonl": "".join(json.dumps(t) + "\n" for t in ROWS).encode(),
    "a.csv": csv_bytes(ROWS), "b.csv": csv_bytes(ROWS, ";"), "a.tsv": csv_bytes(ROWS, "\t"),
    "a.jsonl.gz": gzip.compress(json_lines(ROWS), mtime=0), "a.csv.bz2": bz2.compress(csv_bytes(ROWS)),
    "a.jsonl.xz": lzma.compress(json_lines(ROWS)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_row_is_a_document(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert read_domain(tmp_path / name) == [Document(f"{name}:{i}", text) for i, text in enumerate(ROWS, start=1)]


def test_columns_of_parquet_and_arrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    table = pyarrow.table({"id": range(4), "text": [*ROWS, None], "other": list("abcd")})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    feather.write_feather(table, tmp_path / "b.arrow")
    with pyarrow.ipc.new_stream(tmp_path / "c.arrow", table.schema) as file:  # as `datasets` writes
        file.write_table(table, max_chunksize=2)
    (tmp_path / "state.json").write_text("{}")
    reader = Reader(tmp_path)
    found = list(reader)
    assert [d.path for d in found] == [f"{name}:{i}" for name in ("a.parquet", "b.arrow", "c.arrow") for i in (1, 2, 3)]
    assert [d.text for d in found] == ROWS * 3
    assert reader.notices == ["3 rows without text passed over"]
    assert [d.text for d in read_domain(tmp_path, "other")] == list("abcd") * 3
    with pytest.raises(MixwellError, match=r"'id' holds int; expected text"):
        read_domain(tmp_path / "a.parquet", "id")


def test_zstandard(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    for name, data in (("a.txt.zst", "plain é\n".encode()), ("b.jsonl.zst", json_lines(ROWS))):
        with pyarrow.output_stream(str(tmp_path / name), compression="zstd") as file:
            file.write(data)
    assert [d.text for d in read_domain(tmp_path)] == ["plain é\n", *ROWS]


def test_a_named_field_and_rows_without_text(tmp_path):
    lines = [{"body": "x", "title": "t"}, {"title": "u"}, {"title": " "}, {"title": None}, {"title": "half \ud800."}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    reader = Reader(tmp_path / "a.jsonl", "title")
    assert [(d.path, d.text) for d in reader] == [("a.jsonl:1", "t"), ("a.jsonl:2", "u"), ("a.jsonl:5", "half \ufffd.")]
    assert reader.notices == ["2 rows without text passed over"]
    assert [d.text for d in read_domain(tmp_path / "a.jsonl")] == ["x"]


@pytest.mark.parametrize(("name", "text"), [
    ("settings.json", '{"text": "a setting"}'), ("numbers.json", "[1, 2]"), ("loose.json", "// no JSON\n{}")])
def test_json_that_is_no_table_is_text(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_domain(tmp_path / name) == [Document(name, text)]


@pytest.mark.parametrize(("name", "data", "message"), [
    ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a.jsonl, line 2: not JSON"),
    ("a.jsonl", b'{"text": "x"}\n' + b"[" * 100_000, r"a.jsonl, line 2: not JSON .*recursion"),
    ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', r"'text' holds int; expected text"),
    ("a.csv", b"id,text\n1,a, b\n", r"a.csv, row 1: 3 cells under 2 columns; put quotes"),
    ("a.txt.gz", gzip.compress(b"x" * 9999, mtime=0)[:-9], r"a.txt.gz is cut short or broken"),
    ("a.txt.gz", b"no gzip", r"a.txt.gz is cut short or broken"),
    ("a.txt.xz", b"no xz", r"a.txt.xz is cut short or broken"),
])
def test_a_broken_row_ends_the_reading_also_among_others(folder, name, data, message):
    (folder / name).write_bytes(data)
    with pytest.raises(MixwellError, match=message):
        read_domain(folder)


def test_links_are_followed_once_and_loops_end(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/d.txt").write_text("four")
    os.symlink(tmp_path / "elsewhere", folder / "link")
    os.symlink(tmp_path / "elsewhere", folder / "second")
    os.symlink(folder, folder / "deep/loop")
    os.symlink(folder, folder / "loop")
    os.symlink(folder / "b.txt", folder / "same.txt")
    os.symlink(folder / "gone", folder / "dangling.txt")
    assert paths(folder) == ["a.md", "b.txt", "deep/c.txt", "link/d.txt"]
    assert paths(f"{folder}/**/*.txt") == ["b.txt", "deep/c.txt", "link/d.txt"]


TALK = [{"role": "user", "content": "hi <|end|>"}, {"role": "assistant", "content": "hello"}]
SHAREGPT = [{"from": "human", "value": "hi <|end|>"}, {"from": "gpt", "value": "hello"}]
TALKS = {
    "a.jsonl": json.dumps({"id": 1, "text": "not this", "messages": TALK}) + "\n",
    "b.jsonl": json.dumps({"conversations": SHAREGPT}) + "\n",
    "c.json": json.dumps({"messages": TALK}), "d.json": json.dumps([{"Messages": TALK}]),
}


@pytest.mark.parametrize("name", TALKS)
def test_a_row_of_messages_is_one_document(tmp_path, name):
    (tmp_path / name).write_text(TALKS[name])
    found, = read_domain(tmp_path / name)
    assert (found.path, found.text) == (f"{name}:1", "hi <|end|>\nhello")
    assert Conversation.from_json(found.messages).messages == tuple(TALK)
    assert found.identity != Document("x", found.text).identity and found.size == len(found.text)


def test_messages_in_columns_come_without_the_keys_that_hold_nothing(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    call = [{"function": {"name": "f", "arguments": "{}"}}]
    rows = [[TALK[0], {"role": "assistant", "content": None, "tool_calls": call}], TALK]
    table = pyarrow.table({"messages": rows, "tools": ['[{"name": "f"}]', None]})
    parquet.write_table(table, tmp_path / "a.parquet")
    first, second = (Conversation.from_json(found.messages) for found in read_domain(tmp_path / "a.parquet"))
    assert first.messages[1] == {"role": "assistant", "content": "", "tool_calls": call}
    assert first.tools == ({"name": "f"},)
    assert second == Conversation(tuple(TALK))


def test_rows_that_teach_nothing_are_counted_by_their_reasons(tmp_path):
    rows = [{"messages": TALK}, {"messages": TALK[:1]}, {"messages": []}, {"messages": None}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.png").write_bytes(b"\0")
    reader = Reader(tmp_path)
    assert len(list(reader)) == 1
    assert reader.counts == {
        "files": 2, "documents": 1, "files_passed_over": {"binary": 1},
        "rows_passed_over": {"conversations without an answer": 1, "rows without text": 2}}
    assert reader.notices == ["1 of 2 files passed over (binary): a.png",
                              "1 conversations without an answer passed over", "2 rows without text passed over"]


@pytest.mark.parametrize(("messages", "message"), [
    ([{"role": "user"}, "x"], r"row 1, messages: message 2 is str; expected role and content"),
    ([{"content": "x"}], r"message 1 has the role None; expected user"),
    ([{"role": "x|><|end", "content": "x"}], r"message 1 has the role 'x\|><\|end'"),
    ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], r"message 1 holds more than text"),
])
def test_messages_that_are_none_are_named(tmp_path, messages, message):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    with pytest.raises(MixwellError, match=message):
        read_domain(tmp_path / "a.jsonl")


@pytest.mark.parametrize(("tools", "came"), [(5, "int"), ("5", "int"), ({"a": 1}, "dict"), ('"a"', "str")])
def test_tools_that_are_no_list_are_named(tmp_path, tools, came):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TALK, "tools": tools}))
    with pytest.raises(MixwellError, match=f"row 1, messages: tools are {came}; expected a list"):
        read_domain(tmp_path / "a.jsonl")


def test_messages_that_are_nested_without_end_are_refused(tmp_path):
    call = "[" * 900 + "]" * 900
    messages = f'[{{"role": "assistant", "content": "x", "tool_calls": {call}}}]'
    (tmp_path / "a.jsonl").write_text(f'{{"messages": {messages}}}')
    with pytest.raises(MixwellError, match=r"row 1, messages: .*recursion"):
        read_domain(tmp_path / "a.jsonl")


def test_a_content_in_parts_is_their_text(tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": parts}, TALK[1]]}))
    assert read_domain(tmp_path / "a.jsonl")[0].text == "ab\nhello"


@pytest.mark.parametrize(("name", "data"), [
    ("a.jsonl", json.dumps({"id": 3, "Review": "good"})), ("a.csv", "review\ngood\n"),
    ("a.tsv", "Text\tid\ngood\t1\n")])
def test_the_only_text_and_other_capitals_are_found(tmp_path, name, data):
    (tmp_path / name).write_text(data)
    reader = Reader(tmp_path / name)
    assert [d.text for d in reader] == ["good"]
    guessed = [] if name == "a.tsv" else [data[:6] if name == "a.csv" else "Review"]
    assert reader.notices == [f"the text is taken from the only field that holds some: {field}" for field in guessed]


def test_numbers_in_a_table_are_no_text(tmp_path):
    (tmp_path / "a.csv").write_text("id,review,stars\n1,good,4.5\n2,7,1\n")
    reader = Reader(tmp_path / "a.csv")
    assert [d.text for d in reader] == ["good", "7"]
    assert reader.notices == ["the text is taken from the only field that holds some: review"]
    (tmp_path / "a.csv").write_text("id,name,review\n1,Ann,good\n")
    with pytest.raises(MixwellError, match=r"its fields: id, name, review\); name the one that holds the text"):
        list(Reader(tmp_path / "a.csv"))


def save_rows(folder, texts):
    """A folder as `datasets` saves one, with a cache that it left there."""
    import pyarrow

    folder.mkdir(parents=True)
    for name, rows in (("data-00000-of-00001.arrow", texts), ("cache-1f.arrow", ["cached"])):
        table = pyarrow.table({"text": rows})
        with pyarrow.ipc.new_stream(folder / name, table.schema) as file:
            file.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


def test_saved_data_sets_give_their_rows_and_of_several_splits_the_one_for_training(tmp_path):
    pytest.importorskip("pyarrow")
    save_rows(tmp_path / "one", ["a", "b"])
    assert [d.text for d in read_domain(tmp_path / "one")] == ["a", "b"]
    for split in ("train", "test"):
        save_rows(tmp_path / "all" / split, [split])
    (tmp_path / "all/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    reader = Reader(tmp_path / "all")
    assert [d.text for d in reader] == ["train"]
    assert reader.notices == ["of the data set's splits train alone is read, not test"]
    assert [d.text for d in read_domain(tmp_path / "all/test")] == ["test"]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("state.json", "[1]", "holds no keys and values"), ("dataset_dict.json", "[1]", "holds no keys and values"),
    ("state.json", '{"_data_files": [{}]}', r"_data_files\[0\] is {}; expected keys and values with filename"),
    ("dataset_dict.json", '{"splits": 3}', "splits is 3; expected a list"),
])
def test_a_saved_data_set_that_is_damaged_is_named(tmp_path, name, content, message):
    pytest.importorskip("pyarrow")
    folder = tmp_path / "saved"
    save_rows(folder, ["a"])
    (folder / name).write_text(content)
    with pytest.raises(MixwellError, match=f"{name}.*{message}"):
        read_domain(folder)


def test_without_pyarrow_columns_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MixwellError, match=r"a.parquet needs pyarrow, which is not installed: pip install"):
        read_domain(tmp_path / "a.parquet")


ASKED = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
PAIRS = {
    "a.jsonl": json.dumps({"prompt": "2 + 2?", "completion": "4"}) + "\n",
    "b.jsonl": json.dumps({"prompt": ASKED[:1], "completion": ASKED[1:]}) + "\n",
    "c.csv": "prompt,id,completion\n2 + 2?,7,4\n",
    "d.csv": "Completion,prompt,completion\n5,2 + 2?,4\n"}


@pytest.mark.parametrize("name", PAIRS)
def test_a_prompt_and_its_completion_are_a_conversation(tmp_path, name):
    (tmp_path / name).write_text(PAIRS[name])
    (found,) = read_domain(tmp_path / name)
    assert Conversation.from_json(found.messages).messages == tuple(ASKED)


def test_of_columns_of_one_name_the_first_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("text,text\none,two\n")
    (found,) = read_domain(tmp_path / "a.csv")
    assert found.text == "one"


def test_a_prompt_and_its_completion_come_from_columns_too(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"prompt": ["2 + 2?"], "completion": ["4"], "id": [1]}), tmp_path / "a.parquet")
    (found,) = read_domain(tmp_path / "a.parquet")
    assert Conversation.from_json(found.messages).messages == tuple(ASKED)
