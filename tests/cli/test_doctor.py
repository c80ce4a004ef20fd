"""What `mixwell doctor` says of this machine and of others, and that a recipe runs on those others too."""

import json
import platform
from importlib import metadata

import pytest
from typer.testing import CliRunner

from mixwell.cli import doctor
from mixwell.cli.main import app
from mixwell.core import machine
from mixwell.kernels import rates
from mixwell.run import engine, recipe, sizing
from tests.run import tiny


def lines():
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def small_board(monkeypatch):
    """A single-core ARM64 board of 2 GiB on which bfloat16 is emulated."""
    monkeypatch.setattr(machine, "cpu_model", lambda: "Cortex-A76")
    monkeypatch.setattr(machine, "physical_cores", lambda: 1)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 2 * 2**30)
    monkeypatch.setattr(machine, "capability", lambda: "DEFAULT")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(rates, "_rates", lambda threads: rates.Rates(
        fp32_gflops=20.0, bf16_gflops=1.0, memory_gbps=5.0, threads=threads))


def test_it_names_the_processor_its_speed_and_the_versions():
    text = lines()
    assert machine.cpu_model() in text and machine.capability() in text and f"torch {metadata.version('torch')}" in text
    assert ("trains in      bf16" in text) == rates.rates().bf16_pays


def test_it_says_what_another_machine_means(small_board):
    text = lines()
    assert "Cortex-A76 (aarch64), DEFAULT" in text and "1, of which 1 computes" in text
    assert "fp32 20 GFLOP/s, bf16 1 GFLOP/s" in text and "trains in      fp32 (bf16 is no faster" in text


def test_the_predicted_step_is_that_of_the_default_recipe():
    found = dict(doctor.speed(rates.Rates(fp32_gflops=1.0, bf16_gflops=0.0, memory_gbps=1.0, threads=1)))
    expected = doctor.step_flops() / (doctor.SHARE_OF_GEMM * 1e9)
    assert doctor.seconds(expected) in found["trains in"]
    stages = recipe.stages(sizing.nominal(recipe.read()))
    config = next(s.config for s in stages if s.kind == "train")
    tokens = config.batch_size * config.seq_len
    assert doctor.step_flops() > 6 * 1e5 * tokens  # six FLOPs a parameter and token, and the model has more than that


def test_it_names_what_is_missing_and_where_it_comes_from(monkeypatch):
    def version(name):
        if name == "pyarrow":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert list(doctor.missing()) == [("missing", "pyarrow: Parquet files; pip install 'mixwell[tables]'")]


def test_a_recipe_runs_on_the_other_machine_in_float32(small_board, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chosen = recipe.read(tiny.recipe_file(tmp_path / "recipe"), ["train.dtype=auto"])
    engine.run(chosen, tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["machine"]["cpu"] == "Cortex-A76" and run["machine"]["memory_bytes"] == 2 * 2**30
    records = [json.loads(f.read_text()) for f in (tmp_path / "run" / "stages").glob("*/stage.json")]
    assert {r["config"]["dtype"] for r in records if r["kind"] == "train"} == {"fp32"}
