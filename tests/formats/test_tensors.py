"""Tensors on disk: round trips in one file and in shards, and every refusal by name."""

import json
import pickle

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.formats.tensors import (
    INDEX,
    SINGLE,
    Opened,
    open_file,
    open_folder,
    save_shards,
    save_tensors,
    size_bytes,
)


@pytest.fixture
def tensors(generator):
    return {f"w{i}": torch.randn(4, 5, generator=generator) for i in range(5)} | {
        "half": torch.randn(3, generator=generator).bfloat16(), "count": torch.arange(3)}


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in b)


def test_one_file(tmp_path, tensors):
    save_tensors(tmp_path / "a" / SINGLE, tensors)
    assert same(open_file(tmp_path / "a" / SINGLE), tensors)
    assert [p.name for p in (tmp_path / "a").iterdir()] == [SINGLE]


def test_shards_with_an_index(tmp_path, tensors):
    save_shards(tmp_path, tensors, shard_bytes=200)
    index = json.loads((tmp_path / INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 1 and index["metadata"]["total_size"] == size_bytes(tensors)
    assert same(open_folder(tmp_path), tensors)
    assert all(p.stat().st_size < 1000 for p in tmp_path.glob("*.safetensors"))


def test_to_look_a_name_up_reads_no_tensor(tmp_path, tensors, monkeypatch):
    save_tensors(tmp_path / SINGLE, tensors)
    opened = open_folder(tmp_path)
    monkeypatch.setattr(Opened, "read", lambda *_: pytest.fail("read"))
    assert "w0" in opened and "w9" not in opened and len(opened) == len(tensors)


def test_a_single_file_beside_the_index_of_others_is_refused(tmp_path, tensors):
    save_tensors(tmp_path / SINGLE, tensors)
    weights = dict.fromkeys(tensors, SINGLE)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weights}))
    assert same(open_folder(tmp_path), tensors)
    (tmp_path / INDEX).unlink()
    save_shards(tmp_path, tensors, shard_bytes=200)
    with pytest.raises(MixwellError, match=rf"{SINGLE} and beside it {INDEX}, .* Remove"):
        open_folder(tmp_path)
    (tmp_path / SINGLE).unlink()
    assert same(open_folder(tmp_path), tensors)


def test_views_of_one_memory_are_written_whole(tmp_path):
    base = torch.arange(6.0)
    shared = {"a": base, "b": base, "c": base.view(2, 3), "d": base[:3].expand(2, 3)}
    save_tensors(tmp_path / SINGLE, shared)
    assert same(open_folder(tmp_path), shared)


def test_a_truncated_file_is_named(tmp_path, tensors):
    path = save_tensors(tmp_path / SINGLE, tensors)
    data = path.read_bytes()
    for length in (0, 4, 40, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(MixwellError, match=r"model\.safetensors is cut short|not a safetensors"):
            open_folder(tmp_path)


def test_a_pickle_is_refused_and_never_read(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(MixwellError, match=r"pytorch_model\.bin, a pickle"):
        open_folder(tmp_path)
    (tmp_path / SINGLE).write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(MixwellError, match="is a pickle"):
        open_folder(tmp_path)
    torch.save({"a": torch.ones(2)}, tmp_path / SINGLE)
    with pytest.raises(MixwellError, match="is a pickle"):
        open_folder(tmp_path)


@pytest.mark.parametrize("length", [517, 517 + 256])
def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path, length):
    tensors = {"n" * length: torch.ones(1)}
    path = save_tensors(tmp_path / SINGLE, tensors)
    assert path.read_bytes()[0] == 0x80 and same(open_file(path), tensors)


def test_a_foreign_file_and_an_empty_folder(tmp_path):
    with pytest.raises(MixwellError, match="neither"):
        open_folder(tmp_path)
    (tmp_path / SINGLE).write_bytes(b"\x05\x00\x00\x00\x00\x00\x00\x00hello")
    with pytest.raises(MixwellError, match="not a safetensors file"):
        open_folder(tmp_path)


@pytest.mark.parametrize("change, message", [
    (lambda m: m.update(w9=next(iter(m.values()))), "lacks 'w9'"),
    (lambda m: m.pop("w0"), "hold 'w0'"),
    (lambda m: m.update(w0="../outside.safetensors"), "plain file name"),
    (lambda m: m.update(w0="gone.safetensors"), "is missing"),
    (lambda m: m.clear(), "no weight_map"),
])
def test_an_index_that_lies(tmp_path, tensors, change, message):
    save_shards(tmp_path, tensors, shard_bytes=200)
    index = json.loads((tmp_path / INDEX).read_text())
    change(index["weight_map"])
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(MixwellError, match=message):
        open_folder(tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path, tensors, monkeypatch):
    from safetensors import SafetensorError

    from mixwell.formats import tensors as module

    def full(_, path, **__):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(MixwellError, match="no space left"):
        save_tensors(tmp_path / SINGLE, tensors)
    assert not list(tmp_path.iterdir())
