"""Models by their ids: from the cache as the hub's own library lays it out, and never from elsewhere unasked."""

import sys

import pytest

import mixwell
from mixwell.core.errors import MixwellError
from mixwell.lm import hub
from mixwell.run.paths import find_model
from tests.lm.tiny import tiny_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "hub"
    hub.allow_downloads(False)


def put(cache, name, revision="abc", main=True):
    """A model as `snapshot_download` leaves it: files among blobs, named by links below the revision."""
    repository = cache / f"models--{name.replace('/', '--')}"
    blobs = tiny_model().save(repository / "blobs")
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    if main:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(revision)
    return snapshot


def test_a_model_of_the_cache_goes_by_its_id(cache):
    snapshot = put(cache, "owner/tiny-1.5")
    assert find_model("owner/tiny-1.5") == snapshot
    assert mixwell.load("owner/tiny-1.5").config.vocab_size == 270


def test_the_only_revision_counts_where_none_is_called_main(cache):
    snapshot = put(cache, "owner/tiny", main=False)
    assert hub.hub_model("owner/tiny") == snapshot
    (snapshot.parent / "other").mkdir()
    assert hub.hub_model("owner/tiny") is None


def test_a_folder_here_comes_first(cache, tmp_path):
    put(cache, "owner/tiny")
    own = tmp_path / "owner" / "tiny"
    own.mkdir(parents=True)
    assert find_model("owner/tiny").resolve() == own


def test_nothing_is_downloaded_unasked(cache, monkeypatch):
    asked = []

    class Library:
        @staticmethod
        def snapshot_download(name, allow_patterns):
            asked.append(name)
            assert "*.safetensors" in allow_patterns and not any("bin" in p for p in allow_patterns)
            if name == "owner/gone":
                raise RuntimeError("404\nlong story")
            return str(put(cache, name))

    monkeypatch.setitem(sys.modules, "huggingface_hub", Library)
    with pytest.raises(MixwellError, match=r"owner/tiny is not a folder.*either; --download fetches it"):
        find_model("owner/tiny")
    assert not asked
    hub.allow_downloads()
    assert find_model("owner/tiny").name == "abc" and asked == ["owner/tiny"]
    with pytest.raises(MixwellError, match=r"owner/gone could not be downloaded: 404$"):
        find_model("owner/gone")


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "../up", "/root/x", "runs/mine"])
def test_what_is_no_id_is_looked_for_nowhere(name, cache, tmp_path):
    (tmp_path / "runs").mkdir()
    assert not hub.is_model_id(name) and hub.hub_model(name) is None
