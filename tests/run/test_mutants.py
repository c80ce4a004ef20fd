"""Mutants of recipes and of run folders: refused in one line or the same numbers, and nothing else."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixwell.core.errors import MixwellError
from mixwell.report.records import recipe_text
from mixwell.run import recipe, yaml_data
from tests.mutations import none_ends_badly
from tests.mutations.folders import Folders
from tests.mutations.recipes import Recipes


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    return Recipes(tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("folders"))


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_no_mutant_of_a_recipe_ends_badly(recipes, first):
    none_ends_badly(recipes.try_one, first)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 50, 50))
def test_no_mutant_of_a_run_folder_ends_badly(folders, first):
    none_ends_badly(folders.try_one, first)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4), max_leaves=12)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(plain)
def test_plain_data_comes_back_from_yaml_as_it_was(data):
    assert yaml_data.parse(recipe_text({"a": data}), "a.yaml") == {"a": data}


entries = st.dictionaries(st.sampled_from(["id", "from", "seed", "seeds", "side", "train", "convert", "sample", "x"]),
                          plain | st.sampled_from(["dense", "model", "upcycle", {"tokens": "1k"}]), max_size=4)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(
    st.sampled_from(["name", "seed", "threads", "minutes", "train", "evaluate", "tokenizer", "stages"]),
    plain | st.lists(entries, max_size=3), max_size=3))
def test_any_plain_data_is_a_recipe_or_refused_in_one_line(data):
    try:
        chosen = recipe.from_plain(recipe.counted(data))
        recipe.stages(recipe.replace(chosen, stages=recipe.with_seeds(chosen.stages, chosen.seed)))
    except MixwellError as error:
        assert "\n" not in str(error)
