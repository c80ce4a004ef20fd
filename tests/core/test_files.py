"""Files and folders that appear whole or not at all."""

import errno
import json
import os

import pytest

from mixwell.core import files
from mixwell.core.errors import MixwellError, suggest


def test_text_and_json_are_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "a.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 2}
    assert os.listdir(path.parent) == ["a.json"]


def test_not_a_number_has_no_place_in_json(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "a.txt", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MixwellError, match="no space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_appears_when_its_block_ends_well(tmp_path):
    target = tmp_path / "stage"
    with pytest.raises(RuntimeError), files.whole_folder(target) as scratch:
        (scratch / "half").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    for text in ("one", "two"):
        with files.whole_folder(target) as scratch:
            (scratch / "file").write_text(text)
    assert (target / "file").read_text() == "two" and [p.name for p in tmp_path.iterdir()] == ["stage"]


def test_broken_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(MixwellError, match="not readable as JSON"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(MixwellError, match="is not there"):
        files.read_json(tmp_path / "b.json")


def test_digests_depend_on_content_not_on_order(tmp_path):
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1}) != files.digest({"a": 2, "b": 1})
    (tmp_path / "f").write_bytes(b"x")
    assert files.digest_file(tmp_path / "f") == files.digest(b"x")
    assert len(json.dumps(files.digest("x"))) == 66


def test_suggest():
    assert suggest("top_kk", ["top_k", "hash"]) == " Did you mean 'top_k'?"
    assert suggest("zzz", ["top_k"]) == ""
