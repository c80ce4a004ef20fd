"""Adapters on the command line: merged, converted, talked to and measured beside their base."""

import pytest
import torch
from typer.testing import CliRunner

import mixwell
from mixwell.adapters import files
from mixwell.adapters.lora import Config, LoRA
from mixwell.cli.main import app
from mixwell.compare import existing_page
from mixwell.core.rng import generator
from mixwell.lm.generation import for_tokenizer
from tests.contracts._adapters import moved
from tests.lm.templates import byte_level
from tests.lm.tiny import tiny_model


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base, an adapter, a text, and the merged model with what the command printed."""
    folder = tmp_path_factory.mktemp("adapted")
    tokenizer = byte_level("thinking")
    model = tiny_model(tokenizer.vocab_size)
    model.tokenizer = tokenizer
    model.generation = for_tokenizer(tokenizer)
    model.save(folder / "base")
    files.save(moved(LoRA.attach(model, "all-linear", Config(rank=2), generator(3)), size=0.3), folder / "mine", "base")
    (folder / "text.txt").write_text("several words of a text, and some more of them\n" * 60)
    done = call("apply", "adapters.lora", "--in", folder / "base", "--adapter", folder / "mine", "--out",
                folder / "merged", "--text", folder / "text.txt")
    assert done.exit_code == 0, done.output
    return folder, done.stdout


def call(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def test_a_merge_is_weighed_with_and_without(places):
    folder, printed = places
    lines = {line.split("  ")[0]: line for line in printed.splitlines()}
    assert "merged against beside" in lines["merge error"] and "parameters" in lines["trained"]
    without, beside = (float(word) for word in lines["bits per byte"].split()[3:6:2])
    receipt = mixwell.load(folder / "merged").lineage[-1]["receipt"]
    kept = receipt["bits_per_byte_without"], receipt["bits_per_byte_with"]
    assert (without, beside) == pytest.approx(kept, abs=1e-4)
    assert beside - without == pytest.approx(receipt["bits_per_byte_change"], abs=2e-3)


def test_one_talks_to_the_base_with_the_adapter(places):
    folder, _ = places
    asked = ["hello", "--max-tokens", 12]
    merged = call("chat", folder / "merged", *asked).stdout
    assert call("chat", folder / "base", *asked, "--adapter", folder / "mine").stdout == merged
    assert call("chat", folder / "base", *asked).stdout != merged
    wrong = call("chat", folder / "base", *asked, "--adapter", folder / "base")
    assert wrong.exit_code and "holds no adapter" in wrong.output


def test_the_base_is_held_against_itself_with_the_adapter(places, tmp_path):
    folder, _ = places
    done = call("evaluate", folder / "base", "--adapter", f"tuned={folder / 'mine'}", "--data", folder / "text.txt",
                "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    base, tuned = existing_page.read(tmp_path / "out").models
    assert (base.name, tuned.name) == ("base", "base+tuned") and tuned.parameters > base.parameters
    call("evaluate", folder / "merged", "--data", folder / "text.txt", "--out", tmp_path / "merged")
    (merged,) = existing_page.read(tmp_path / "merged").models
    for domain, bits in merged.bits.items():
        assert tuned.bits[domain] == pytest.approx(bits, rel=1e-4)
    two = call("evaluate", folder / "base", folder / "merged", "--adapter", folder / "mine", "--out", tmp_path / "two")
    assert two.exit_code and "adapters stand beside one model; 2 came" in two.output
    twice = call("evaluate", folder / "base", "--adapter", "a=x", "--adapter", "a=y", "--out", tmp_path / "twice")
    assert twice.exit_code and "two adapters would be 'a'" in twice.output


def test_an_adapter_is_written_anew_where_the_layout_holds_it(places, tmp_path):
    folder, _ = places
    words = ["apply", "adapters.lora", "--in", folder / "base", "--adapter", folder / "mine", "--out", tmp_path / "out"]
    done = call(*words, "layout=own")
    assert done.exit_code == 0 and "max_logit_error    0" in done.output, done.output
    first, second = (files.load(place, mixwell.load(folder / "base")) for place in (folder / "mine", tmp_path / "out"))
    assert all(torch.equal(value, second.tensors()[name]) for name, value in first.tensors().items())
    based = call(*words[:-1], tmp_path / "based", "--base", folder / "base")
    assert based.exit_code and "adapters.lora takes no --base" in based.output and not (tmp_path / "based").exists()
    merge = call("apply", "merge.linear", "--in", folder / "base", "--in", folder / "base", "--adapter",
                 folder / "mine", "--out", tmp_path / "based")
    assert merge.exit_code and "merge.linear takes no --adapter" in merge.output
    refused = call(*words[:-1], tmp_path / "theirs", "layout=peft")
    assert refused.exit_code and "no decoder of transformers computes this model" in refused.output
    assert not (tmp_path / "theirs").exists()
