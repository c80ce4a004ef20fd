"""Files and folders that appear whole or not at all."""

import errno
import json
import os
import stat

import pytest
import torch

from mixwell.core import files
from mixwell.core.errors import MixwellError, suggest
from mixwell.formats.tensors import save_tensors


def test_text_and_json_are_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "a.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 2}
    assert os.listdir(path.parent) == ["a.json"]


def test_not_a_number_has_no_place_in_json(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "a.txt", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MixwellError, match="no space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_appears_when_its_block_ends_well(tmp_path):
    target = tmp_path / "stage"
    with pytest.raises(RuntimeError), files.whole_folder(target) as scratch:
        (scratch / "half").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    for text in ("one", "two"):
        with files.whole_folder(target) as scratch:
            (scratch / "file").write_text(text)
    assert (target / "file").read_text() == "two" and [p.name for p in tmp_path.iterdir()] == ["stage"]


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
    """What the system is to withhold from new files, for one test."""
    usual = os.umask(request.param)
    yield request.param
    os.umask(usual)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_has_the_mode_that_the_umask_gives(tmp_path, umask):
    files.write_text(tmp_path / "deep" / "a.txt", "x")
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(3)})
    with files.whole_folder(tmp_path / "folder") as scratch:
        files.write_json(scratch / "a.json", 1)
    with files.whole_file(tmp_path / "private") as scratch:  # a library that puts a file of its own in the place
        scratch.unlink()
        os.close(os.open(scratch, os.O_CREAT | os.O_WRONLY, 0o600))
    written = {p.name: oct(mode(p)) for p in tmp_path.rglob("*")}
    expected = {name: oct(0o666 & ~umask) for name in ("a.txt", "a.safetensors", "a.json", "private")}
    assert written == expected | {name: oct(0o777 & ~umask) for name in ("deep", "folder")}


def test_a_file_replaced_under_another_umask_has_the_new_mode(tmp_path, umask):
    path = files.write_text(tmp_path / "a.txt", "old")
    path.chmod(0o600)
    assert mode(files.write_text(path, "new")) == 0o666 & ~umask


def test_broken_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(MixwellError, match="not readable as JSON"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(MixwellError, match="is not there"):
        files.read_json(tmp_path / "b.json")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MixwellError, match="is a folder; expected a file"):
        files.read_json(tmp_path)
    assert os.listdir("/proc/self/fd") == before


def test_digests_depend_on_content_not_on_order(tmp_path):
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1}) != files.digest({"a": 2, "b": 1})
    (tmp_path / "f").write_bytes(b"x")
    assert files.digest_file(tmp_path / "f") == files.digest(b"x")
    assert len(json.dumps(files.digest("x"))) == 66


def test_suggest():
    assert suggest("top_kk", ["top_k", "hash"]) == " Did you mean 'top_k'?"
    assert suggest("zzz", ["top_k"]) == ""
    assert suggest("learning_rate", ["tokens", "lr"]) == suggest("lerning-rate", ["lr"]) == " Did you mean 'lr'?"
    assert suggest("bs", ["batch_size", "lr"]) == " Did you mean 'batch_size'?"
    assert suggest("l", ["lr", "tokens"]) == " Did you mean 'lr'?" and suggest("x", ["xylophone_a"]) == ""


@pytest.mark.parametrize(("written", "meant"), [
    ("gradient_accumulation_steps", "accumulate"), ("grad_accum", "accumulate"), ("learning_rate", "lr"),
    ("max_length", "seq_len"), ("wd", "weight_decay"), ("per_device_train_batch_size", "batch_size"),
    ("num_train_epochs", "epochs"), ("max_steps", "steps"), ("gradient_checkpointing", "checkpointing"),
    ("max_grad_norm", "grad_clip"), ("warmup_ratio", "warmup"), ("torch_dtype", "dtype"), ("Learning-Rate", "lr"),
    ("gradient_acumulation_steps", "accumulate"), ("frozen", "freeze"), ("btach_size", "batch_size"),
])
def test_a_key_of_other_programs_is_answered_with_the_one_that_means_the_same(written, meant):
    from dataclasses import fields

    from mixwell.lm.training.config import TrainConfig

    known = [field.name for field in fields(TrainConfig)]
    assert suggest(written, known) == f" Did you mean {meant!r}?"


def test_a_word_that_is_known_is_not_answered_with_itself():
    assert suggest("lr", ["lr"]) == "" and suggest("lr", ["lr", "learning_rate"]) == " Did you mean 'learning_rate'?"
