"""What stands in a run's folder is what was written there, or it is made again, or refused by name."""

import json
import os
import random
import re
import shutil

import pytest
from typer.testing import CliRunner

from mixwell.cli.main import app
from mixwell.core.errors import MixwellError
from mixwell.core.files import write_json
from mixwell.formats import sealed
from mixwell.report import records
from mixwell.run import engine, recipe, verify
from mixwell.run.observers import Observer


def plan(file, out):
    return {p.stage.id: p for p in engine.plan(recipe.read(file), out, predict=False)}


def place(out, stage):
    return next(out.glob(f"stages/{stage}-????????"))


def weights(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.glob("stages/*/model/*.safetensors")}


def flip(path, position, bit):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def quietly_flip(path, position, bit):
    """As a disk does it: neither sizes nor times change, as far as a program can bring that about."""
    before = path.stat()
    flip(path, position, bit)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_verify_finds_each_of_a_hundred_flipped_bits(finished, tmp_path):
    out, draws = tmp_path / "run", random.Random(4)
    shutil.copytree(finished[1], out)
    sealed.write(out / "size.json", {"minutes": 3.0})  # where a run was fitted to the machine, or is one of several
    sealed.write(out / "compare.json", {"name": "x", "variants": []})
    assert verify.verify(out).problems == []
    others = (".checked.json", ".lock", "report.html")
    files = [p for p in sorted(out.rglob("*")) if p.is_file() and p.name not in others]
    assert len(files) > 40 and {"run.json", "stage.json", "recipe.yaml", "model.safetensors", "metrics.jsonl"} <= {
        p.name for p in files}
    for number in range(100):
        path = draws.choice(files) if number >= len(files) else files[number]
        position, bit = draws.randrange(path.stat().st_size), draws.randrange(8)
        quietly_flip(path, position, bit)
        problems = verify.verify(out).problems
        assert problems and path.name in " ".join(problems), f"{path}, byte {position}, bit {bit}"
        quietly_flip(path, position, bit)
    assert verify.verify(out).problems == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def another_figure(path):
    path.write_text(path.read_text().replace('"threads": 1', '"threads": 3'))


def nothing(path):
    path.write_text("{}")


def a_list(path):
    path.write_text("[]")


def a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = [("dense", "model/model.safetensors", lambda path: flip(path, 900, 3), "is not as it was written"),
           ("dense", "model/model.safetensors", cut, r"has \d+ bytes where \d+ were written"),
           ("dense", "model/model.safetensors", os.unlink, "is missing"),
           ("dense", "model/config.json", a_folder, "is no file"),
           ("dense", "metrics.jsonl", cut, "bytes"),
           ("tokens", "shards/00-train.bin", lambda path: flip(path, 5, 1), "is not as it was written"),
           ("dense", "stage.json", another_figure, "its digest is another"),
           ("dense", "stage.json", nothing, "holds no digest"),
           ("dense", "stage.json", a_list, "holds list"),
           ("dense", "stage.json", os.unlink, "is not there")]


@pytest.mark.parametrize(("stage", "name", "harm", "words"), DAMAGES)
def test_damage_is_seen_by_the_next_run(copy, stage, name, harm, words):
    file, out = copy
    if stage == "tokens":
        name = "shards/" + next(p.name for p in place(out, "tokens").glob("shards/*train*"))
    harm(place(out, stage) / name)
    planned = plan(file, out)
    assert [p.stage.id for p in planned.values() if not p.cached] == [stage]
    assert re.search(words, planned[stage].damage) and name.split("/")[-1] in planned[stage].damage


def test_a_damaged_stage_is_made_again_with_the_same_bits_and_it_says_so(copy):
    file, out = copy
    before, kept = weights(out), (place(out, "moe") / "stage.json").stat().st_mtime_ns
    flip(place(out, "dense") / "model" / "model.safetensors", 2000, 0)
    done = CliRunner().invoke(app, ["run", str(file), "--out", str(out)])
    assert done.exit_code == 0
    assert "dense is made again: " in done.stdout and "model.safetensors is not as it was written" in done.stdout
    assert weights(out) == before and (place(out, "moe") / "stage.json").stat().st_mtime_ns == kept
    assert "cached" in done.stdout and verify.verify(out).problems == []


class Stopping(Observer):
    """Ends the program at the first step of a training."""

    def advanced(self, planned, share, words):
        if words.startswith("loss"):
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["state/state.json", "state/step-00000001.safetensors"])
def test_a_training_goes_on_from_no_damaged_state(copy, name):
    file, out = copy
    before = weights(out)
    shutil.rmtree(place(out, "dense-trained"))
    with pytest.raises(KeyboardInterrupt):
        engine.run(recipe.read(file), out, observer=Stopping())
    work = next(out.glob("stages/.work-dense-trained-*"))
    flip(work / name, 40, 2)
    engine.run(recipe.read(file), out)
    notices = records.read_stage(place(out, "dense-trained")).result["notices"]
    assert re.search(rf"^The training was started afresh: .*{name}", notices[0])
    assert weights(out) == before and not work.exists()


def test_what_was_made_from_other_bits_is_made_again(copy):
    """A stage that stands on weights which are no longer there is not what its record says."""
    file, out = copy
    dense = place(out, "dense")
    record = records.read_stage(dense)
    flip(dense / "model" / "mixwell.json", 3, 0)
    files = {**record.files, "model/mixwell.json": verify.digests.of_folder(dense)["model/mixwell.json"]}
    records.write_stage(records.replace(record, files=files))
    assert plan(file, out)["moe"].cached
    flip(dense / "model" / "mixwell.json", 3, 0)  # the run makes it again, as it was
    done = CliRunner().invoke(app, ["run", str(file), "--out", str(out)])
    assert done.exit_code == 0 and "dense is made again" in done.stdout and "moe is made again" not in done.stdout
    moe = records.read_stage(place(out, "moe"))
    records.write_stage(records.replace(moe, built_on={**moe.built_on, "dense": "0" * 64}))
    done = CliRunner().invoke(app, ["run", str(file), "--out", str(out)])
    assert "moe is made again: it was made from another dense than the one that is there now" in done.stdout
    assert [e.id for e in records.listed_stages(out) if not e.cached] == ["moe"]


def test_a_copied_run_is_read_once_and_then_known(copy, monkeypatch):
    file, out = copy
    engine.run(recipe.read(file), out)

    def read(path, expected):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(verify.digests, "wrong", read)
    assert all(p.cached for p in plan(file, out).values())
    metrics = place(out, "dense") / "metrics.jsonl"
    os.utime(metrics, ns=(1, 1))
    with pytest.raises(AssertionError, match=r"metrics\.jsonl was read"):
        plan(file, out)


def test_a_foreign_file_in_a_stage_is_refused_and_stays(copy):
    file, out = copy
    mine = place(out, "dense") / "model" / "model.safetensors.index.json"
    mine.write_text("{}")
    with pytest.raises(MixwellError, match=r"index\.json was not written by the run.*move it elsewhere"):
        engine.run(recipe.read(file), out)
    assert mine.exists() and "index.json" in verify.verify(out).problems[0]
    metrics = place(out, "dense") / "metrics.jsonl"
    whole = metrics.read_bytes()
    cut(metrics)
    first, second = verify.verify(out).problems
    assert "metrics.jsonl has" in first and "index.json was not written by the run" in second, "one hides no other"
    metrics.write_bytes(whole)
    odd = mine.rename(mine.with_name("a\n\x1b[2J"))
    assert r"a\n\x1b[2J was not written" in verify.verify(out).problems[0]
    odd.rename(mine)
    mine.rename(mine.with_name(".hidden"))
    assert plan(file, out)["dense"].cached


def test_verify_makes_the_next_run_look_again(copy):
    """What a disk lost leaves sizes and times as they were; the next run reads what `verify` found."""
    file, out = copy
    engine.run(recipe.read(file), out)
    dense = place(out, "dense")
    flip(dense / "model" / "model.safetensors", 2000, 0)
    verify.remember(records.read_stage(dense))  # as though the disk had done it
    assert plan(file, out)["dense"].cached
    done = CliRunner().invoke(app, ["verify", str(out)])
    assert done.exit_code == 2 and "model.safetensors is not as it was written" in done.stdout
    assert "1 thing is not as written; run the recipe again" in done.stderr
    assert not plan(file, out)["dense"].cached
    engine.run(recipe.read(file), out)
    done = CliRunner().invoke(app, ["verify", str(out)])
    assert done.exit_code == 0 and "all as they were written" in done.stdout and done.stderr == ""


def test_verify_wants_a_run(tmp_path):
    done = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert done.exit_code == 2 and "is no folder of a run" in done.stderr


def test_figures_are_sealed(tmp_path):
    path = sealed.write(tmp_path / "a.json", {"x": 1.5, "y": [1, {"z": "é"}]})
    assert sealed.read(path, "do it again") == {"x": 1.5, "y": [1, {"z": "é"}]}
    text = path.read_text()
    for other in (text.replace("1.5", "1.50"), text.replace("\n", "", 1), text.replace("1.5", "NaN"), text[:-1],
                  text.replace('"x": 1.5', '"x": 1.5,\n  "x": 1.5')):
        assert other != text
        path.write_text(other)
        with pytest.raises(MixwellError, match=r"a\.json is not as it was written: its digest is another; do it again"):
            sealed.read(path, "do it again")
    write_json(path, {"x": 1})
    with pytest.raises(MixwellError, match=r"it holds no digest.*; do it again\.$"):
        sealed.read(path, "do it again")
    assert json.loads(text)["digest"] in text
