"""What is said of a run that has no report yet, and what a kill leaves for good."""

import shutil

from typer.testing import CliRunner

from mixwell.cli.main import app
from mixwell.core import disk
from mixwell.report import records
from mixwell.run import engine, lock, recipe, status


def report(out):
    return CliRunner().invoke(app, ["report", str(out)])


def test_a_report_during_a_run_says_what_there_is(copy):
    out = copy[1]
    (out / records.RUN).unlink()
    for stage in ("moe-int8", "samples", "dense-trained"):
        shutil.rmtree(next(out.glob(f"stages/{stage}-????????")))
    (out / "stages" / ".work-dense-trained-12345678").mkdir()
    with lock.locked(out):
        done = report(out)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert f"is under way (process {lock.Holder.own().process}, for " in done.stderr
    listed = "7 stages are finished (data, tokenizer, tokens, model, dense, moe, moe-trained), dense-trained begun"
    assert listed in done.stderr
    done = report(out)
    assert "was stopped before its report; the same command goes on; 7 stages are finished" in done.stderr


def test_a_report_of_an_earlier_run_says_that_another_is_under_way(copy):
    out = copy[1]
    with lock.locked(out):
        done = report(out)
    assert done.exit_code == 0 and "report: " in done.stdout and "is under way" in done.stdout
    assert "this report is of what was finished before" in done.stdout
    assert "under way" not in report(out).stdout


def test_a_folder_that_is_no_run_has_no_status(tmp_path):
    assert status.unfinished(tmp_path) == "" and report(tmp_path).exit_code == 2


def test_a_kill_while_a_file_is_written_leaves_nothing_for_good(copy, monkeypatch):
    file, out = copy
    monkeypatch.setattr(disk.os, "getpid", lambda: 2**22 + 7)  # beyond all processes: one that has ended
    places = [out / "run.json", out / "recipe.yaml", out / "size.json", next(out.glob("stages/dense-*")) / "stage.json"]
    left = [disk.scratch_beside(path) for path in places]
    monkeypatch.undo()
    for path in left:
        path.write_text("half")
    (out / ".mine").write_text("kept")
    engine.run(recipe.read(file), out)
    assert not any(path.exists() for path in left) and (out / ".mine").exists()
