"""`mixwell export`: a folder in, a GGUF file out, and one line for what cannot be."""

import pytest
import torch
from typer.testing import CliRunner

import mixwell
from mixwell.cli.main import app
from mixwell.lm.config import ModelConfig
from mixwell.lm.model import LanguageModel

gguf = pytest.importorskip("gguf")


def call(*words):
    found = CliRunner().invoke(app, list(map(str, words)))
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found


@pytest.fixture(scope="module")
def model():
    mixer = {"method": "moe", "num_experts": 3, "hidden_dim": 32, "router": {"method": "top_k", "k": 2}}
    config = ModelConfig(vocab_size=40, dim=32, num_layers=1, num_heads=2, channel_mixer=mixer)
    return LanguageModel(config, torch.Generator().manual_seed(0))


def test_a_folder_becomes_a_file(model, tmp_path):
    folder = model.save(tmp_path / "folder")
    path = tmp_path / "model.gguf"
    found = call("export", folder, "--out", path, "--type", "q4_1")
    assert found.exit_code == 0 and f"written: {path}" in found.stdout
    named = gguf.GGUFReader(path).fields["general.name"].contents()
    assert named == "folder", "and not where it lay"
    again = mixwell.load(path)
    assert again.config.architecture == "mixtral" and not torch.equal(again.layers[0].channel_mixer.down_proj,
                                                                      model.layers[0].channel_mixer.down_proj)
    exact = mixwell.load(mixwell.export(model, tmp_path / "exact.gguf", type="f32"))
    assert torch.equal(exact.layers[0].channel_mixer.down_proj, model.layers[0].channel_mixer.down_proj)


def test_a_quantised_model_is_refused_with_the_way_out(model, tmp_path):
    mixwell.apply("precision.int8", model.save(tmp_path / "folder"), out=tmp_path / "small")
    found = call("export", tmp_path / "small", "--out", tmp_path / "small.gguf")
    assert found.exit_code == 2 and "quantised already: export the model from before" in found.output
    assert not (tmp_path / "small.gguf").exists()


@pytest.mark.parametrize(("name", "kind", "message"), [
    ("model.bin", "q8_0", "expected a name that ends in .gguf"), ("model.gguf", "q6_k", "type 'q6_k' is not written")])
def test_refusals_are_one_line(model, tmp_path, name, kind, message):
    folder = model.save(tmp_path / "folder")
    found = call("export", folder, "--out", tmp_path / name, "--type", kind)
    assert found.exit_code == 2 and message in found.output
    assert not (tmp_path / name).exists()
