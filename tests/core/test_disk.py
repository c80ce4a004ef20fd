"""What a crash leaves after any prefix of a write: the old state or the new one."""

import os
import subprocess
import sys

import pytest

from mixwell.core import disk, files
from tests import faults


def without_scratch(image):
    """An image without what is recognisable as nobody's."""
    return {path: data for path, data in image.items() if not disk._SCRATCH.fullmatch(path.partition("/")[0])}


def write_folder(path, text):
    with files.whole_folder(path) as folder:
        files.write_text(folder / "a.txt", text)
        (folder / "deep").mkdir()
        (folder / "deep" / "b.txt").write_text(text * 3)  # written without any care
    return path


def write_file(path, text):
    return files.write_text(path, text)


WRITERS = pytest.mark.parametrize("write", [write_file, write_folder])


@WRITERS
@pytest.mark.parametrize("before", [False, True], ids=["new", "over an old one"])
def test_each_prefix_of_a_write_is_the_old_state_or_the_new(write, before, tmp_path):
    if before:
        write(tmp_path / "x", "old")
    old = faults.image_of(tmp_path)
    with faults.recorded(tmp_path) as tape:
        write(tmp_path / "x", "new")
    new = faults.image_of(tmp_path)
    assert old != new and new
    seen = [without_scratch(image) for image in tape.images()]
    assert all(image in (old, new) for image in seen)
    assert old in seen and len(tape.calls) >= 4
    assert all(without_scratch(image) == new for image in tape.last())  # when the writer returns, it is there for good


@WRITERS
@pytest.mark.parametrize("forgotten", ["sync_file", "sync_folder"])
def test_a_forgotten_sync_is_found(write, forgotten, tmp_path, monkeypatch):
    write(tmp_path / "x", "old")
    old = faults.image_of(tmp_path)
    monkeypatch.setattr(disk, forgotten, lambda path: None)
    with faults.recorded(tmp_path) as tape:
        write(tmp_path / "x", "new")
    new = faults.image_of(tmp_path)
    torn = [image for image in map(without_scratch, tape.images()) if image not in (old, new)]
    unsure = [image for image in tape.last() if without_scratch(image) != new]
    assert torn or unsure


def test_new_parents_last_too(tmp_path):
    with faults.recorded(tmp_path) as tape:
        files.write_text(tmp_path / "one" / "two" / "x", "new")
    assert [without_scratch(image) for image in tape.last()] == [{"one/two/x": b"new"}]


def test_without_exchange_the_old_folder_keeps_a_name(tmp_path, monkeypatch):
    write_folder(tmp_path / "x", "old")
    monkeypatch.setattr(disk, "_exchange", lambda first, second: False)
    with faults.recorded(tmp_path) as tape:
        write_folder(tmp_path / "x", "new")
    new = faults.image_of(tmp_path)
    assert new["x/a.txt"] == b"new" and set(new) == {"x/a.txt", "x/deep/b.txt"}
    for image in tape.images():
        whole = [data for path, data in image.items() if path.endswith("/a.txt")]
        assert b"old" in whole or b"new" in whole


def test_a_folder_that_cannot_take_the_place_leaves_the_old_one(tmp_path, monkeypatch):
    write_folder(tmp_path / "x", "old")
    monkeypatch.setattr(disk, "_exchange", lambda first, second: False)
    usual, count = os.replace, []

    def second_fails(source, target):
        count.append(target)
        if len(count) == 2:
            raise OSError(5, "Input/output error", str(target))
        usual(source, target)

    with pytest.raises(files.MixwellError, match="Input/output error"), files.whole_folder(tmp_path / "x"):
        monkeypatch.setattr(os, "replace", second_fails)
    assert (tmp_path / "x" / "a.txt").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]


def scratch_of(process, tmp_path):
    return tmp_path / f".x.{disk._owner()}-{process}-00000000.tmp"


def ended_process():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_what_an_ended_process_left_is_cleared_and_what_a_live_one_writes_is_not(tmp_path):
    left, live = scratch_of(ended_process(), tmp_path), scratch_of(os.getpid(), tmp_path)
    far = tmp_path / ".x.ffffffff-1-00000000.tmp"
    farther = tmp_path / ".x.ffffffff-2-00000000.tmp"
    other = tmp_path / left.name.replace(".x.", ".y.")
    for path in (left, live, far, other):
        path.write_text("half")
    farther.mkdir()
    os.utime(farther, (0, 0))
    files.write_text(tmp_path / "x", "whole")
    assert {p.name for p in tmp_path.iterdir()} == {live.name, far.name, other.name, "x"}
    disk.clear_scratch(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {live.name, far.name, "x"}


def test_nothing_else_is_taken_for_scratch(tmp_path):
    for name in (".x", ".x.tmp", "x.0123abcd-1-00000000.tmp", ".x.zz-1-00000000.tmp", ".lock"):
        (tmp_path / name).write_text("mine")
    disk.clear_scratch(tmp_path)
    disk.clear_scratch(tmp_path / "nowhere")
    assert len(list(tmp_path.iterdir())) == 5
