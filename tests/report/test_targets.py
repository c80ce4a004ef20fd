"""Whether something can be written, told before the work; nothing is left behind."""

import pytest

from mixwell.core.errors import MixwellError
from mixwell.report.targets import check_file, check_folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("file", "own/run.json", "own/notes", "both/run.json", "both/compare.json", "hidden/.lock"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    yield tmp_path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["both", "empty", "file", "hidden", "own"]
    assert not list((tmp_path / "empty").iterdir()) and len(list((tmp_path / "own").iterdir())) == 2


@pytest.mark.parametrize("name", ["new", "new/deep/er", "empty", "hidden", "own"])
def test_a_folder_that_can_be_written(here, name):
    check_folder(name, own=("run.json",), foreign=("compare.json",))


@pytest.mark.parametrize(("name", "told"), [
    ("file", "file is there and is no folder"), ("file/below", "a file is where a folder is needed"),
    ("both", "both is there already and holds 'compare.json'"), ("/proc/x", "cannot write /proc/x"),
])
def test_a_folder_that_cannot(here, name, told):
    with pytest.raises(MixwellError, match=told):
        check_folder(name, own=("run.json",), foreign=("compare.json",))


def test_a_folder_of_other_things_is_not_written_into(here):
    with pytest.raises(MixwellError, match="holds 'notes'"):
        check_folder("own")


def test_a_file_may_take_the_place_of_another_but_of_no_folder(here):
    for name in ("new.json", "deep/er/new.json", "file"):
        check_file(name)
    for name, told in (("empty", "empty is a folder"), ("file/x.json", "a file is where a folder is needed")):
        with pytest.raises(MixwellError, match=told):
            check_file(name)
