"""Shared by the tests of runs: a finished run, a copy of it, text, and a cache of a test's own."""

import shutil

import pytest

from tests.run import tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A recipe and the folder of its run; neither is to be changed."""
    from mixwell.run import engine, recipe

    folder = tmp_path_factory.mktemp("finished")
    file = tiny.recipe_file(folder / "recipe", tokens=300)
    engine.run(recipe.read(file), folder / "run")
    return file, folder / "run"


@pytest.fixture
def copy(finished, tmp_path):
    """A run of one's own."""
    shutil.copytree(finished[1], tmp_path / "run")
    return finished[0], tmp_path / "run"


@pytest.fixture
def texts(tmp_path):
    """A folder with the text of two domains."""
    tiny.corpus(tmp_path / "texts")
    return tmp_path / "texts"


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """What is measured and found out by this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
