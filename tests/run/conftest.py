"""Shared by the tests of runs: a finished run, a copy of it, and text."""

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
