"""YAML as plain data: what it means, and how much of it there may be."""

import os

import pytest

from mixwell.core.errors import MixwellError
from mixwell.run import recipe, yaml_data


def parsed(text):
    return yaml_data.parse(text, "a.yaml")


def test_merge_keys_are_taken_and_own_keys_win():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {y: 4, <<: [*a, {z: 5, x: 6}]}\nd: {<<: {x: 7}}"
    assert parsed(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 4, "z": 5}, "d": {"x": 7}}


def test_a_recipe_shares_its_options_by_merge_keys(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("stages:\n  - {id: a, train: &t {tokens: 1M, lr: 1e-3}}\n  - {id: b, train: {<<: *t, lr: 2e-3}}\n")
    stages = {stage.id: stage.config for stage in recipe.stages(recipe.read(path))}
    assert (stages["a"].tokens, stages["a"].lr, stages["b"].tokens, stages["b"].lr) == (1e6, 1e-3, 1e6, 2e-3)


def test_to_change_one_alias_changes_no_other(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("stages:\n  - {id: a, train: &t {tokens: 1M}}\n  - {id: b, train: *t}\n")
    stages = {stage.id: stage.config for stage in recipe.stages(recipe.read(path, ["stages.a.train.tokens=2M"]))}
    assert (stages["a"].tokens, stages["b"].tokens) == (2e6, 1e6)


def bomb(step, depth=14, width=9):
    lines = ["a0: &a0 {k: 1}"]
    for i in range(1, depth):
        names = ", ".join([f"*a{i - 1}"] * width)
        lines.append(f"a{i}: &a{i} " + step.format(names))
    return "\n".join(lines)


@pytest.mark.parametrize(("text", "words"), [
    (bomb("[{}]"), "more than 20\u202f000 keys and values, counted with what aliases repeat"),
    (bomb("{{<<: [{}]}}"), "more than 20\u202f000 keys and values"),
    ("\n".join(f"k{i}: {i}" for i in range(20_000)), "more than 20\u202f000 keys and values"),
    ("a: &a [*a]", "an alias names what it stands in"),
    ("a: &a {<<: *a}", "an alias names what it stands in"),
    ("[" * 30_000, "more than 40 levels"),
    ("a: " + "9" * 5000, "'9999999999999999999999999999999999999...' cannot be read"),
    ("1: 2", "the key '1' is no text"), ("yes: 2", "the key 'yes' is no text"),
    ("{[1]: 2}", "a list or a mapping is no text"),
    ("a: 1\na: 2", "the key 'a' stands twice"), ("{<<: {a: 1}, <<: {b: 1}}", "the key '<<' stands twice"),
    ("a: !!python/object:os.system x", "has no place in plain data"), ("a: !!set {x}", "has no place in plain data"),
    ("a: *b", "found undefined alias 'b'"), ("<<: 1", "for merging"), ("a: \x00", "is not YAML"),
    ("--- 1\n--- 2", "found another document"),
])
def test_what_is_no_plain_data_or_too_much_is_refused_in_one_line(text, words):
    with pytest.raises(MixwellError, match=r"^a\.yaml[^\n]+$") as caught:
        parsed(text)
    assert words in str(caught.value) and len(str(caught.value)) < 400


def test_dates_are_text():
    assert parsed("a: 2024-01-01\nb: 2024-13-41") == {"a": "2024-01-01", "b": "2024-13-41"}


@pytest.mark.parametrize(("make", "words"), [
    (lambda path: path.write_bytes(b"a: \xff"), "is not text"),
    (lambda path: path.write_text("a: 1 # " + "x" * yaml_data.MOST_BYTES), "is larger than 500\u202f000 bytes"),
    (os.mkfifo, "is no regular file"), (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    (lambda path: path.symlink_to(path.name), "cannot be read"),
])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, make, words):
    make(tmp_path / "a.yaml")
    with pytest.raises(MixwellError, match=words):
        yaml_data.read(tmp_path / "a.yaml")


def entry(i):
    return {"id": f"s{i}", "convert": "upcycle", "num_experts": 2}


def test_a_thousand_stages_are_resolved_and_more_are_refused():
    few = recipe.from_plain({"stages": [entry(i) for i in range(recipe.MOST_STAGES)]})
    assert len(recipe.stages(few)) == recipe.MOST_STAGES + 4
    with pytest.raises(MixwellError, match="stages: 3000 came; expected 1000 at most"):
        recipe.from_plain({"stages": [entry(i) for i in range(3000)]})


@pytest.mark.parametrize("seeds", [10**9, 10**30, 1001, -1, 0, [2**63], [1, 1], [True], "3", [[]]])
def test_seeds_beyond_bounds_are_refused(seeds):
    with pytest.raises(MixwellError, match=r"stages\.a\.seeds: expected how many"):
        recipe.with_seeds([{"id": "a", "train": {"tokens": 1}, "seeds": seeds}], 0)


@pytest.mark.parametrize(("change", "words"), [
    ("model={dim: 65536, num_layers: 900}", r"the weights take [\d.]+.TB, this machine has .* of memory"),
    ("model={num_layers: 1000000000}", "model.num_layers: 1000000000 came; expected 1000 at most"),
    ("model={dim: 9223372036854775807}", "model.dim: 9223372036854775807 came; expected 2147483647 at most"),
    ("train={tokens: 1e30}", "recipe.train.tokens: a number of 31 digits came"),
    ("seed=9223372036854775808", "seed: 9223372036854775808 came"),
    ("threads=100000", "expected 1 or more, 4096 at most"), ("name=" + "n" * 101, "becomes a folder"),
])
def test_sizes_are_looked_at_before_anything_is_made(change, words):
    with pytest.raises(MixwellError, match=words):
        recipe.stages(recipe.read(None, [change]))
