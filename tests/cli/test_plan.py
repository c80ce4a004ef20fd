"""`mixwell plan`: a table, a reason and a command; clear words for what cannot be planned."""

import shlex

import pytest
import yaml
from typer.testing import CliRunner

from mixwell.cli.main import app
from mixwell.parallel.cluster import Cluster, Device, Link
from mixwell.run import measuring

CLUSTER = {"devices": 4, "device": {"flops_per_s": "1T", "memory_bytes": "8G", "memory_bytes_per_s": "100G"},
           "inside": {"latency_s": 1e-5, "bytes_per_s": "10G"}}
MIXTURE = {"method": "moe", "num_experts": 4, "hidden_dim": 8, "router": {"method": "top_k", "k": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "a.txt").write_text("text\n" * 50)
    recipe = {"data": {"domains": {"a": str(folder / "a.txt")}},
              "model": {"dim": 16, "num_layers": 2, "num_heads": 2, "channel_mixer": MIXTURE},
              "train": {"steps": 4, "batch_size": 8, "seq_len": 16, "dtype": "fp32"},
              "stages": [{"id": "only", "train": {}}]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))
    return folder


def plan(folder, *words):
    done = CliRunner().invoke(app, ["plan", str(folder / "recipe.yaml"), *map(str, words)])
    return done.exit_code, done.output


def test_a_described_cluster(folder):
    code, said = plan(folder, "--cluster", folder / "cluster.yaml")
    assert code == 0, said
    lines = said.splitlines()
    assert lines[0].split()[:3] == ["layout", "a", "step"] and lines[1].startswith("data=")
    assert any("less time than" in line or "equally long" in line for line in lines)
    assert lines[-1].startswith("to train so (data=") and "torchrun --nproc_per_node 4 -m mixwell run" in lines[-1]


def test_a_measured_one(folder, monkeypatch):
    device = Device(flops_per_s=1e9, memory_bytes=1e9, memory_bytes_per_s=1e9)
    found = Cluster(device=device, inside=Link(latency_s=1e-3, bytes_per_s=1e8), devices=2)
    monkeypatch.setattr(measuring, "measure", lambda processes, step: found)
    code, said = plan(folder, "--measure", 2, "--save", folder / "here.yaml")
    assert code == 0 and "here.yaml" in said, said
    assert plan(folder, "--cluster", folder / "here.yaml")[1].splitlines()[:4] == said.splitlines()[1:5]


def test_the_command_trains_what_was_planned(folder):
    """With the changes of the recipe that the plan was made for, and with a place where several nodes meet."""
    many = {**CLUSTER, "nodes": 2, "between": {"latency_s": 1e-4, "bytes_per_s": "1G"}}
    (folder / "many.yaml").write_text(yaml.safe_dump(many))
    code, said = plan(folder, "train.batch_size=16", "train.dtype=fp32", "--cluster", folder / "many.yaml")
    command = shlex.split(said.splitlines()[-1].partition("step): ")[2])
    assert code == 0, said
    assert command[:7] == ["torchrun", "--nnodes", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "HOST:29500"]
    assert command[7:12] == ["--nproc_per_node", "4", "-m", "mixwell", "run"]
    assert command[12:15] == [str(folder / "recipe.yaml"), "train.batch_size=16", "train.dtype=fp32"]
    assert command[15].startswith("parallel.expert=")


@pytest.mark.parametrize("words, line", [
    ((), "give one of --cluster FILE and --measure N"),
    (("--measure", 2, "--cluster", "a"), "give one of --cluster FILE and --measure N"),
    (("--cluster", "a", "--save", "b"), "give --measure N with it"),
    (("--measure", 2, "--save", "."), "is a folder; expected a file to write"),
    (("--measure", 1), "1 processes came; expected 2 to 64"),
    (("--cluster", "nowhere.yaml"), "there is no file nowhere.yaml")])
def test_refusals(folder, words, line):
    code, said = plan(folder, *words)
    assert code == 2 and line in said


def test_nothing_fits(folder):
    small = {**CLUSTER, "device": {**CLUSTER["device"], "memory_bytes": 100}}
    (folder / "small.yaml").write_text(yaml.safe_dump(small))
    code, said = plan(folder, "--cluster", folder / "small.yaml")
    assert code == 0 and "no layout fits" in said and "no such layout fits" in said
