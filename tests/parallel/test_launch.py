"""Processes as torchrun starts them: one run of a recipe, its numbers, and how it ends when one of them does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch.distributed as dist
import yaml
from typer.testing import CliRunner

from mixwell.cli.main import app
from mixwell.core.errors import MixwellError
from mixwell.parallel import launch
from mixwell.parallel.start import start as begin
from mixwell.parallel.team import Alone, Layout
from mixwell.parallel.wire import LostWorker
from mixwell.report.records import read_run

LINES = "".join(f"{i} and {i + 1} make {2 * i + 1}\n" for i in range(400))
MIXTURE = {"method": "moe", "num_experts": 4, "hidden_dim": 8, "router": {"method": "top_k", "k": 2}}
RECIPE = {
    "name": "tiny", "threads": 1, "tokenizer": {"vocab_size": 280},
    "model": {"dim": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "channel_mixer": MIXTURE},
    "train": {"batch_size": 4, "seq_len": 8, "log_every": 1, "dtype": "fp32"},
    "evaluate": {"max_tokens": 512, "batch_size": 4, "seq_len": 8},
    "stages": [{"id": "first", "train": {"steps": 6}}, {"id": "second", "from": "first", "train": {"steps": 4}}],
}
if not hasattr(os, "fork"):
    pytest.skip("splits processes off", allow_module_level=True)
TIMEOUT = 240  # for all of it, on a machine that is busy with other things


def places(size):
    """What torchrun tells each process of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(size):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        yield {name: str(value) for name, value in own.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "text").mkdir()
    for part in range(8):
        (folder / "text" / f"{part}.txt").write_text(LINES[part * 900 :][:2000])
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "data": {"domains": {"text": "text"}}}))
    return folder


def split_off(place, words, said):
    """The id of a process that runs the command, without importing all of it again; what it says goes to two files."""
    child = os.fork()
    if not child:
        os.environ.update(place)
        try:
            with open(f"{said}.out", "w") as sys.stdout, open(f"{said}.err", "w") as sys.stderr:
                app(words)
        except SystemExit as ended:
            os._exit(ended.code or 0)
        finally:
            os._exit(1)
    return child


def code_of(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.fixture(scope="module")
def runs(folder):
    """The run of one process, which is this one, and that of two over which the experts are spread."""
    words = ["run", "recipe.yaml", "--out", "two", "parallel.expert=2"]
    first, second = places(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        leader = subprocess.Popen([sys.executable, "-m", "mixwell", *words], env=os.environ | first,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        other = split_off(second, words, "other")
        done = CliRunner().invoke(app, ["run", "recipe.yaml", "--out", "one"])
    assert done.exit_code == 0, done.output
    said = [leader.communicate(timeout=TIMEOUT)]
    ended = leader.returncode, code_of(other)
    said.append(tuple((folder / f"other.{stream}").read_text() for stream in ("out", "err")))
    assert ended == (0, 0), said
    return read_run(folder / "one"), read_run(folder / "two"), said


def metrics(run, stage):
    lines = (run.folder / "stages" / next(s.folder.name for s in run.stages if s.id == stage) / "metrics.jsonl")
    return [json.loads(line) for line in lines.read_text().splitlines()]


@pytest.mark.parametrize("stage", ["first", "second"])
def test_two_processes_make_the_run_of_one(runs, stage):
    one, two, _ = runs
    for a, b in zip(metrics(one, stage), metrics(two, stage), strict=True):
        assert b["loss_nats"] == pytest.approx(a["loss_nats"], rel=1e-6) and a["load"] == b["load"]
    records = [next(s for s in run.stages if s.id == stage) for run in (one, two)]
    assert records[0].key == records[1].key and records[0].result["ledger"] == records[1].result["ledger"]
    bits = [record.evaluation["mean"] for record in records]
    assert bits[0] == pytest.approx(bits[1], rel=1e-5)


def test_the_first_process_speaks_for_all(runs):
    _, _, said = runs
    assert "report:" in said[0][0] and said[1] == ("", "")


def test_of_many_that_fail_one_speaks():
    class Gone:
        def compare_set(self, *words):
            raise RuntimeError("the connection was closed")

    class Other(Alone):
        rank = 1

    store = dist.HashStore()
    assert launch.Crew(Other(), None, store).tells() and not launch.Crew(Alone(), None, store).tells()
    assert launch.Crew(Alone(), None, Gone()).tells(), "somebody has to"


def test_processes_of_one_machine_end_without_a_trace(capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert begin(2, ["run", "--nonsense"]) == 2
    said = capfd.readouterr().err
    assert said.count("No such option: --nonsense") in (1, 2) and "Traceback" not in said and "torch" not in said


def test_a_process_that_dies_ends_the_other_with_its_own_message(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    states, said = tmp_path / "dead" / "stages", tmp_path / "said.err"
    words = ["run", "recipe.yaml", "--out", str(tmp_path / "dead"), "parallel.expert=2",
             "stages.first.train.steps=1M", "train.save_every=2"]
    crew = [split_off(place, words, tmp_path / name) for name, place in zip(("said", "unheard"), places(2))]
    try:
        deadline = time.monotonic() + TIMEOUT
        while not list(states.glob(".work-*/state/state.json")):
            assert time.monotonic() < deadline and not os.waitpid(crew[0], os.WNOHANG)[0], said.read_text()
            time.sleep(0.05)
        os.kill(crew[1], signal.SIGKILL)
        assert code_of(crew.pop(0)) == 2 and said.read_text().startswith(
            "error: stage first: process 0 of 2 got no answer from another, which has ended or fell silent")
        assert not list(states.glob("first-*")), "nothing half-written"
    finally:
        for process in crew:
            os.kill(process, signal.SIGKILL)
            code_of(process)


def test_a_process_that_never_comes_is_waited_for_so_long(monkeypatch):
    for name, value in zip(launch.NEEDED, ("0", "2", "127.0.0.1", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(LostWorker, match=r"not all of 2 processes came within 0.5 s"), launch.crew(
            Layout(timeout_s=0.5)):
        pass


def test_one_process_needs_no_others(monkeypatch):
    for name in launch.NEEDED:
        monkeypatch.delenv(name, raising=False)
    with launch.crew(Layout()) as found:
        assert found is None
    with pytest.raises(MixwellError, match="expert=2 does not fit 1 processes"), launch.crew(Layout(expert=2)):
        pass
