"""Where a model lies that a user names."""

import shutil

import pytest

from mixwell.core.errors import MixwellError
from mixwell.report.records import RunRecord, StageRecord, write_run, write_stage
from mixwell.run import paths


def stage(run, id, key="1a2b3c4d", *, model=True, path=None):
    folder = run / "stages" / f"{id}-{key}"
    (folder / "model").mkdir(parents=True) if model else folder.mkdir(parents=True)
    kind = "load" if path else "train" if model else "tokenizer"
    record = StageRecord(id=id, kind=kind, method=kind, key=key, result={"path": path} if path else {}, folder=folder)
    write_stage(record)
    return record


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with the run `runs/mine` of a tokenizer, a dense model and two mixtures of one id."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "mine"
    tokenizer = stage(run, "tokenizer", model=False)
    stage(run, "dense-trained")
    moe = stage(run, "moe", "00000000")
    stage(run, "moe", "ffffffff")
    gone = stage(run, "gone", "11111111")
    write_run(RunRecord(name="mine", stages=(tokenizer, moe, gone), folder=run))
    shutil.rmtree(gone.folder)
    return tmp_path


@pytest.mark.parametrize("name", ["runs/mine:moe", "mine:moe", "runs/mine/stages/moe-00000000", "./runs/mine/:moe",
                                  "runs/mine/stages/moe-00000000/model"])
def test_a_model_is_found_by_its_run_and_stage_its_stages_folder_or_its_own(here, name):
    assert paths.find_model(name).resolve() == here / "runs/mine/stages/moe-00000000/model"
    assert paths.find_model(here / "runs/mine:moe" if ":" in name else name).is_dir()


def test_a_stage_that_the_record_does_not_name_is_found_too(here):
    assert paths.find_model("runs/mine:dense-trained").parent.name == "dense-trained-1a2b3c4d"
    (here / "runs/mine/run.json").unlink()
    assert paths.find_model("runs/mine:dense-trained").parent.name == "dense-trained-1a2b3c4d"
    with pytest.raises(MixwellError, match=r"has 2 stages 'moe'; name the folder of one: runs/mine/stages/moe-0000"):
        paths.find_model("runs/mine:moe")


def test_a_loaded_model_is_found_where_it_stayed(here):
    elsewhere = here / "llama"
    elsewhere.mkdir()
    stage(here / "runs" / "mine", "model", model=False, path=str(elsewhere))
    assert paths.find_model("mine:model") == elsewhere


def test_a_folder_whose_name_holds_a_colon_is_taken_as_it_is(here):
    (here / "a:b").mkdir()
    assert paths.find_model("a:b").name == "a:b"


@pytest.mark.parametrize(("name", "told"), [
    ("runs/mine:mo", "runs/mine has no stage 'mo'. Did you mean 'moe'? Stages with a model: moe, dense-trained."),
    ("runs/mine:gone", "has no stage 'gone'"),
    ("runs/mine:tokenizer", "tokenizer-1a2b3c4d holds no model"),
    ("runs/mine", "runs/mine is a run; name one of its stages: runs/mine:moe, runs/mine:dense-trained."),
    ("runs/mime:moe", "runs/mime is no folder of a run. Did you mean 'mine'? Runs here: mine."),
    ("mime:moe", "Did you mean 'mine'?"),
    ("runs/mine/stages/moe-0000000", "is not a folder. Did you mean 'moe-00000000'?"),
    ("nowhere/at/all", "nowhere/at/all is not a folder. Expected a model folder"),
])
def test_a_name_that_leads_nowhere_gets_the_nearest_one(here, name, told):
    with pytest.raises(MixwellError) as caught:
        paths.find_model(name)
    assert told in str(caught.value)
