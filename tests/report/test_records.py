"""Records of runs: what is written is read back, and damage is named instead of passed over."""

import json
from dataclasses import fields, replace

import pytest
import yaml

from mixwell.core.errors import MixwellError
from mixwell.formats import sealed
from mixwell.report.records import StageRecord, read_run, read_stage
from tests.report import fake_run


@pytest.fixture
def folder(tmp_path):
    return fake_run.write(tmp_path, fake_run.stages())


def place(folder, stage):
    return next(folder.glob(f"stages/{stage}-????????"))


def edit(file, **changes):
    """Write other entries, with a digest that fits: what another version might have written."""
    data = json.loads(file.read_text())
    del data["digest"]
    data = {k: v for k, v in {**data, **changes}.items() if v is not None}
    sealed.write(file, data)


def test_what_is_written_is_read_back(folder):
    written = {record.id: record for record in fake_run.write_stages(folder / "again", fake_run.stages())}
    run = read_run(folder)
    assert [s.id for s in run.stages] == list(written) and run.folder == folder and run.seconds == 243.4
    plain = json.loads(json.dumps([s.to_dict() for s in written.values()]))
    assert [json.loads(json.dumps(s.to_dict())) for s in run.stages] == plain
    assert {f.name for f in fields(StageRecord)} - set(plain[0]) == {"folder", "side"}
    assert [s.side for s in run.stages] == [s.side for s in written.values()]


def test_the_recipe_lies_beside_the_record(folder):
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == fake_run.RECIPE


def test_cached_stages_are_marked(tmp_path):
    folder = fake_run.write(tmp_path, fake_run.stages(), cached=("data", "dense"))
    entries = json.loads((folder / "run.json").read_text())["stages"]
    assert [e["id"] for e in entries if e["cached"]] == ["data", "dense"] == list(read_run(folder).cached)


def test_metrics_are_read_from_the_stage_as_they_were_written_or_not_at_all(folder):
    assert read_run(folder)["moe"].metrics == [] and len(read_run(folder)["dense"].metrics) == 200
    file = place(folder, "dense") / "metrics.jsonl"
    whole = file.read_text()
    changes = [(whole + '{"step": 10', "bytes where"), (whole[:-9], "bytes where"),
               (whole.replace("7", "8", 1), "is not as it was written")]
    for text, words in changes:
        file.write_text(text)
        with pytest.raises(MixwellError, match=rf"metrics\.jsonl .*{words}.*; remove .*dense-\w+, then run the recipe"):
            read_run(folder)["dense"].metrics  # noqa: B018 - reading it is the test
    file.unlink()
    with pytest.raises(MixwellError, match=r"metrics\.jsonl is missing"):
        read_run(folder)["dense"].metrics  # noqa: B018


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"digest": 1}', "[" * 50_000, "NaN", '{"id": "dense"}'])
@pytest.mark.parametrize("name", ["stage.json", "run.json"])
def test_records_that_hold_something_else_are_one_line(folder, name, text):
    file = place(folder, "dense") / name if name == "stage.json" else folder / name
    file.write_text(text)
    with pytest.raises(MixwellError, match=rf"{name}[^\n]*$"):
        read_run(folder)


@pytest.mark.parametrize(("file", "changes", "words"), [
    ("stage.json", {"method": None}, r"missing method.*remove .*dense-\w{8}, then run the recipe again"),
    ("stage.json", {"stage": "train"}, "unknown key 'stage'.*another version's"),
    ("stage.json", {"inputs": {"model": "model"}}, "inputs: expected a list"),
    ("stage.json", {"id": "other"}, "holds the stage other .* expected dense"),
    ("stage.json", {"key": "f" * 64}, "with the key ffffffff, expected dense with"),
    ("run.json", {"stages": [{"id": "dense"}]}, "missing key, folder, cached, side"),
    ("run.json", {"seconds": "long"}, "seconds: expected a number"),
])
def test_damage_is_named_with_the_file_and_a_remedy(folder, file, changes, words):
    edit(place(folder, "dense") / file if file == "stage.json" else folder / file, **changes)
    with pytest.raises(MixwellError, match=words) as error:
        read_run(folder)
    assert "run the recipe again" in str(error.value) and "\n" not in str(error.value)


def test_a_stage_without_its_folder_is_refused(folder):
    (place(folder, "dense") / "stage.json").unlink()
    with pytest.raises(MixwellError, match=r"stage\.json is not there"):
        read_run(folder)


def test_a_loaded_model_stays_where_it_was(tmp_path):
    loaded, _ = fake_run.stage("model", "load", [], {"path": "/models/mine"})
    loaded, *_ = fake_run.write_stages(tmp_path, [(loaded, [])])
    assert str(read_stage(loaded.folder).model_folder) == "/models/mine"
    built = replace(loaded, kind="build", result={})
    assert built.model_folder == loaded.folder / "model" and replace(loaded, kind="data").model_folder is None


def test_ancestors_and_parents(folder):
    run = read_run(folder)
    assert run.parent(run["moe-trained"]).id == "moe" and run.parent(run["tokens"]).id == "tokenizer"
    assert [s.id for s in run.ancestors(run["moe"])] == ["data", "tokenizer", "tokens", "model", "dense", "moe"]
