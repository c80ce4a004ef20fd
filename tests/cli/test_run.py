"""`run`, `apply`, `report` from the command line, and how they end when something is wrong."""

import errno
import functools
import io
import json
import signal
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

import mixwell
from mixwell.cli.main import app
from mixwell.cli.progress import Bar
from mixwell.cli.runs import most_memory
from mixwell.core import measured
from mixwell.core.errors import MixwellError
from mixwell.core.units import si
from mixwell.report.records import StageRecord
from mixwell.run.costs import Costs
from tests.run import tiny

SHORT = [f"stages.{stage}.train.tokens=300" for stage in ("dense", "moe-trained", "dense-trained")]


def call(*words):
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The recipe's file, the run's folder, what the command printed."""
    folder = tmp_path_factory.mktemp("cli")
    file = tiny.recipe_file(folder / "recipe")
    return file, folder / "run", call("run", file, "--out", folder / "run", *SHORT)


def test_run_tells_every_stage_and_names_the_report(ran):
    _, out, done = ran
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    for stage, fact in (("data", "2 domains"), ("tokenizer", "300 ids"), ("dense", "bits per byte"),
                        ("moe", "promise kept"), ("moe-trained", "active"), ("samples", "1 sample")):
        assert any(line.startswith(f"{stage} ") and fact in line for line in lines), stage
    assert lines[-1] == f"report: {out / 'report.html'}" and (out / "report.html").is_file()


def test_run_ends_with_the_answer_and_the_command_that_settles_it_works(ran):
    import shlex

    _, _, done = ran
    (answer,) = [line for line in done.stdout.splitlines() if line.startswith("One seed at equal tokens")]
    assert "% in bits per byte of held-out text." in answer
    command = next(line for line in done.stdout.splitlines() if line.startswith("next: mixwell compare "))
    words = shlex.split(command)[2:]
    settled = call(*words, "--dry-run")
    assert settled.exit_code == 0, settled.output
    assert "compared after dense-trained, 3 seeds: " in settled.stdout and "(baseline)" in settled.stdout


def test_a_second_run_is_cached(ran):
    file, out, _ = ran
    done = call("run", file, "--out", out, *SHORT)
    assert done.exit_code == 0 and done.stdout.count("cached") == 10


def test_dry_run_prints_and_writes_nothing(ran, tmp_path):
    file, out, _ = ran
    fresh = call("run", file, "--out", tmp_path / "new", "--dry-run")
    assert fresh.exit_code == 0 and not (tmp_path / "new").exists()
    assert "convert.upcycle" in fresh.stdout and "together:" in fresh.stdout and " run " in fresh.stdout
    again = call("run", file, "--out", out, "--dry-run", *SHORT)
    assert "nothing to do" in again.stdout and " run " not in again.stdout
    later = call("run", file, "--out", out, "--dry-run", "--from", "moe-int8", *SHORT)
    assert later.stdout.count(" run ") == 2


def test_report_is_written_anew(ran, tmp_path):
    done = call("report", ran[1], "--out", tmp_path / "r.html")
    assert done.exit_code == 0 and "dense-trained" in (tmp_path / "r.html").read_text()


def test_apply_prints_the_receipt(ran, tmp_path):
    source = next(ran[1].glob("stages/dense-????????/model"))
    done = call("apply", "upcycle", "--in", source, "--out", tmp_path / "moe", "num_experts=3", "router.k=2")
    assert done.exit_code == 0, done.output
    assert "max_logit_error" in done.stdout and "promised: at most 0.001" in done.stdout
    assert "measured on random tokens" in done.stdout and "give --text" in done.stdout
    told = call("apply", "upcycle", "--in", source, "--out", tmp_path / "read", "--text", ran[0].parent / "left")
    assert told.exit_code == 0 and "loss_before_nats" in told.stdout and "random" not in told.stdout
    lineage = json.loads((tmp_path / "moe" / "mixwell.json").read_text())["lineage"]
    assert lineage[-1]["config"]["num_experts"] == 3 and lineage[-1]["config"]["router"] == {"k": 2}


def test_a_model_is_named_by_run_and_stage(ran, tmp_path, monkeypatch):
    from mixwell.run import datasets

    monkeypatch.chdir(ran[1].parent)
    monkeypatch.setattr(datasets, "load", functools.cache(datasets.load))  # the same text thrice, which takes seconds
    done = call("apply", "upcycle", "--in", f"{ran[1].name}:dense", "--out", tmp_path / "moe", "num_experts=2")
    assert done.exit_code == 0, done.output
    folder = next(ran[1].glob("stages/moe-trained-????????"))
    found = [call("apply", "experts.analysis.load", "--in", place).stdout
             for place in (f"{ran[1].name}:moe-trained", folder, folder / "model")]
    assert json.loads(found[0])["layers"] and found == [found[0]] * 3


def test_a_recipe_and_python_take_the_stage_of_a_run(ran, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "again.yaml"
    file.write_text(tiny.RECIPE.format(folder=ran[0].parent, seed=0, tokens=0).split("stages:")[0]
                    .replace("model: {dim: 16, num_layers: 1, num_heads: 2, hidden_dim: 16}", f"model: {ran[1]}:dense")
                    .replace("tokenizer: {vocab_size: 300}\n", "") + "stages: [{id: more, train: {tokens: 300}}]\n")
    done = call("run", file, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    lineage = mixwell.load(f"{tmp_path / 'out'}:more").lineage
    assert [line["id"] for line in lineage] == ["model", "dense", "more"]
    assert "Did you mean 'dense'?" in call("run", file, f"model={ran[1]}:dens").stderr


@pytest.mark.parametrize(("words", "told"), [
    (["run", "none.yaml"], "none.yaml is not there"),
    (["run", "a.yaml", "b.yaml"], "expected one recipe"),
    (["run", "train.lrr=1"], "Did you mean 'lr'?"),
    (["run", "train.lerning_rate=1"], "Did you mean 'lr'?"),
    (["run", "--from", "dense-s"], "Did you mean 'dense-s"),
    (["run", "model.num_heads=3"], "model: "),
    (["run", "data.domains={wiki: /no/such/folder}"], "data.domains.wiki: /no/such/folder is not there"),
    (["apply", "convert.upcycle", "--in", "/no/such", "--out", "x"], "/no/such is not a folder"),
    (["apply", "convert.upcycle", "--in", "a", "--out", "x", "num_experts"], "expected key=value"),
    (["report", "/no/such"], "/no/such/run.json is not there"),
    (["run", "--out", "a-file"], "a-file is there and is no folder"),
    (["run", "--dry-run", "--out", "a-file/x"], "cannot write a-file/x (a file is where a folder is needed)"),
    (["run", "--out", "other"], "other is there already and holds 'notes.txt'"),
    (["run", "--out", "compared"], "compared is there already and holds 'compare.json'"),
    (["compare", "--vary", "model.dim=32,64", "--out", "ran"], "ran is there already and holds 'run.json'"),
    (["apply", "convert.upcycle", "--in", "/no/such", "--out", "other"], "other is there already and holds"),
    (["apply", "convert.upcycle", "--in", "/no/such", "--out", "a-file/x/y"], "cannot write a-file/x/y"),
    (["apply", "experts.analysis.load", "--in", "/no/such", "--out", "other"], "other is a folder; expected a file"),
    (["apply", "experts.analysis.load", "--in", "/no/such", "--out", "a-file/x.json"], "cannot write a-file/x.json"),
    (["report", "ran", "--out", "other"], "other is a folder; expected a file"),
    (["claims", "experts.routers.hash", "--save", "a-file"], "cannot write a-file"),
])
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    for name in ("a-file", "other/notes.txt", "compared/compare.json", "compared/stages/x", "ran/run.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    done = call(*words)
    assert done.exit_code == 2 and done.stdout.strip() == ""
    assert done.stderr.startswith("error: ") and told in done.stderr and done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert not any(p.suffix in (".safetensors", ".html") or p.name == "stage.json" for p in tmp_path.rglob("*"))


@pytest.mark.parametrize(("error", "code", "told"), [
    (OSError(errno.ENOSPC, "No space left on device"), 2, "error: no space left on the disk"),
    (MixwellError("one\nline"), 2, "error: one\\nline"),
    (KeyboardInterrupt(), 130, "stopped; run the same command to go on")])
def test_how_a_run_ends_early(monkeypatch, tmp_path, error, code, told):
    from mixwell.run import engine

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(engine, "run", fail)
    done = call("run", "--out", tmp_path)
    assert done.exit_code == code and done.stderr.startswith(told) and done.stderr.count("\n") == 1


def test_our_own_faults_keep_their_trace(monkeypatch, tmp_path):
    from mixwell.run import engine

    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(engine, "run", fail)
    assert isinstance(call("run", "--out", tmp_path).exception, ZeroDivisionError)


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN], ids=["heard", "ignored"])
def test_being_asked_to_end_is_ctrl_c_with_its_own_exit_code(monkeypatch, tmp_path, ctrl_c):
    from mixwell.run import engine

    usual = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(engine, "run", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    previous = signal.signal(signal.SIGINT, ctrl_c)
    try:
        done = call("run", "--out", tmp_path)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert (done.exit_code, done.stderr) == (143, "stopped; run the same command to go on\n")
    assert signal.getsignal(signal.SIGTERM) == usual


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_finished(ran, tmp_path, monkeypatch, number, code):
    steps, real = [], Bar.advanced

    def advanced(bar, planned, share, words):
        real(bar, planned, share, words)
        if planned.stage.id == "dense" and words.startswith("loss"):
            steps.append(share)
            if len(steps) == 3:
                signal.raise_signal(number)

    monkeypatch.setattr(Bar, "advanced", advanced)
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = call("run", ran[0], "--out", tmp_path, "stages.dense.train.tokens=9M")
    finally:
        signal.signal(signal.SIGINT, usual)
    assert (done.exit_code, done.stderr) == (code, "stopped; run the same command to go on\n")
    names = {p.name.rpartition("-")[0] for p in (tmp_path / "stages").glob("[a-z]*")}
    assert names == {"data", "tokenizer", "tokens", "model"}
    assert [p.name[:11] for p in (tmp_path / "stages").glob(".*")] == [".work-dense"], "one training, to go on with"
    state = next(tmp_path.glob("stages/.work-dense-*/state/state.json"))
    assert json.loads(state.read_text())["step"] == 3


def test_getting_ready_says_what_is_done(ran, tmp_path, monkeypatch):
    said = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Bar, "preparing", lambda bar, words: said.append(words))
    monkeypatch.setattr(Costs, "_worth", lambda self, seconds: True)
    done = call("run", ran[0], "--out", tmp_path / "new", "--dry-run", *SHORT)
    assert done.exit_code == 0, done.output
    assert said[0] == "look at the text" and "time the tokenizer on a sample of the text" in said
    for start in ("time a training step of model", "time dense reading text", "time the conversion to moe"):
        assert any(words.startswith(start) for words in said), start
    bar = Bar(Console(quiet=True))
    monkeypatch.undo()
    bar.preparing("time")
    assert bar.bar.tasks[0].description == "get ready · time"


def test_where_no_bar_moves_getting_ready_is_told_in_lines(ran, tmp_path, monkeypatch):
    monkeypatch.setattr(Costs, "_worth", lambda self, seconds: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = call("run", ran[0], "--out", tmp_path / "new", "--dry-run", *SHORT)
    lines = [line for line in done.stdout.splitlines() if line.startswith("get ready · ")]
    assert "get ready · time the tokenizer on a sample of the text" in lines
    assert len(set(lines)) == len(lines) and "get ready · look at the text" not in lines


def test_the_terminal_says_what_is_done_before_anything_is_imported(monkeypatch):
    import subprocess
    import sys

    program = ("import builtins, sys\nfrom rich.console import Console\nimport mixwell.cli.runs as runs\n"
               "from mixwell.cli.progress import Bar\nplain = builtins.__import__\n"
               "def refuse(name, *rest):\n    if name == 'torch':\n        raise SystemExit(7)\n"
               "    return plain(name, *rest)\n"
               "builtins.__import__ = refuse\n"
               "Bar.__enter__ = lambda bar: (print(bar.bar.tasks[0].description, flush=True), bar)[1]\n"
               "runs.run()\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 7 and done.stdout.strip() == "get ready · load", done.stderr


@pytest.mark.parametrize("busy", [True, False])
def test_predictions_made_on_a_busy_machine_are_told(ran, tmp_path, monkeypatch, busy):
    monkeypatch.setattr(measured, "disturbed", lambda *, own: ["x"] if busy and own else [])
    for more in (["--dry-run"], []):
        done = call("run", ran[0], "--out", tmp_path / "new", *more, *SHORT)
        assert done.exit_code == 0 and ("other programs kept this machine busy" in done.stdout) == busy


def planned(id, seconds, evaluation=0.0, cached=False, epochs=None):
    prediction = SimpleNamespace(seconds=seconds, epochs=epochs)
    return SimpleNamespace(stage=SimpleNamespace(id=id), cached=cached, evaluated=cached, predicted=prediction,
                           seconds=seconds + evaluation)


def test_the_bar_counts_predicted_seconds():
    bar = Bar(Console(quiet=True))
    stages = [planned("a", 0.0, cached=True), planned("b", 6.0, 2.0), planned("c", 2.0)]
    bar.planned(stages)
    task = bar.bar.tasks[0]
    assert task.total == 10.0
    bar.advanced(stages[1], 0.5, "loss 2")
    assert task.completed == 3.0 and "b" in task.description and task.fields["left"].endswith("left")
    bar.advanced(stages[1], 1.0, "evaluate")
    assert task.completed == 6.0
    for one in stages[1:]:
        bar.finished(one, StageRecord(id="c", kind="sample", method="sample", key="k", result={"samples": [1]}))
    assert task.completed == task.total


def test_repeated_text_is_told_before_the_run_and_what_a_stage_found_after_it(monkeypatch):
    monkeypatch.setattr(measured, "disturbed", lambda *, own: [])
    out = io.StringIO()
    bar = Bar(Console(file=out, width=200))
    stages = [planned("data", 1.0), planned("once", 1.0, epochs=0.9), planned("twice", 1.0, epochs=2.34)]
    bar.planned(stages)
    assert out.getvalue().splitlines()[0] == "twice plans to read its text about 2.3 times over"
    told = {"samples": [], "notices": ["a: little text."]}
    bar.finished(stages[0], StageRecord(id="data", kind="sample", method="sample", key="k", result=told))
    assert out.getvalue().splitlines()[-1].split(maxsplit=1) == ["a:", "little text."]


def test_memory_is_told_only_where_every_stage_that_computes_was_measured():
    def planned(peak, flops=1e9, cached=False):
        return SimpleNamespace(cached=cached, predicted=SimpleNamespace(flops=flops, peak_bytes=peak))

    measured, reading = planned(2e9), planned(1e9, flops=None)
    assert most_memory([reading, measured]) == f", {si(2e9, 'B')} of memory at most"
    assert most_memory([measured, planned(None)]) == ""
    assert most_memory([measured, planned(None, cached=True), planned(None, flops=None)]) != ""
